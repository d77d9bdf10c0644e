// The element-wise reductions over the models of a pool (TIES, DARE, Fisher, geometric, minimum, maximum), once,
// for host and device. Everything is computed in double, each multiplication and addition rounded by itself, so
// that all machines agree to the bit (but for geometric, whose logarithms are the machine's).
#pragma once

#include <cmath>
#include <cstdint>

#include "dtype.h"

namespace ratfast {

enum class CombineKind : std::uint8_t { minimum, maximum, geometric, fisher, sum, elect };

// One tensor of every model. Elements may lie at any address on the host.
struct CombineSegment {
  std::int64_t numel;
  const void* const* sources;  // N; for fisher 2 N: the models, then their Fisher diagonals
  const DType* source_types;
  const void* base;  // null: zeros
  DType base_type;
  void* output;  // may be a source or the base
  DType output_type;
  const double* thresholds;  // N, or null
  std::uint64_t key;         // of the tensor, for the draws
  std::int64_t first;        // place of element 0 within its tensor, for the draws
};

struct CombineOptions {
  CombineKind kind;
  int models;                    // N
  const double* weights;         // N
  const double* densities;       // N, or null
  const std::uint32_t* streams;  // N numbers of the models for the draws
  std::uint32_t seed;
  double scale;
  bool normalize;
};

// Never fused: host objects are compiled with -ffp-contract=off.
RATFAST_HD double times(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

RATFAST_HD double plus(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

// NaN wins; of two zeros the second.
RATFAST_HD double smaller(double a, double b) { return (a < b) | (a != a) ? a : b; }
RATFAST_HD double larger(double a, double b) { return (a > b) | (a != a) ? a : b; }

// Philox4x32-10 (Salmon et al., SC 2011): four random words from a counter and a key.
struct Philox {
  std::uint32_t words[4];
};

RATFAST_HD Philox philox(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3,
                         std::uint32_t k0, std::uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = static_cast<std::uint64_t>(0xD2511F53u) * c0;
    const std::uint64_t b = static_cast<std::uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(b);
    c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The draws for elements 4 * group .. 4 * group + 3 of a tensor in one model.
RATFAST_HD Philox draws(std::uint32_t seed, std::uint32_t stream, std::uint64_t key, std::uint64_t group) {
  return philox(static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(group >> 32),
                static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32), seed, stream);
}

// The difference to the base without what is too small (TIES' trimming).
RATFAST_HD double trim(double tau, double threshold) {
  const float magnitude = ::fabsf(static_cast<float>(tau));
  return static_cast<double>(magnitude) < threshold ? 0.0 : tau;
}

// DARE: kept with probability `density`, and then enlarged, so that the expectation stays. For density < 1.
RATFAST_HD double thin(double tau, double density, std::uint32_t word) {
  return times(static_cast<double>(word), 0x1p-32) < density ? tau / density : 0.0;
}

RATFAST_HD double on_base(double base, double scale, double value) { return plus(base, times(scale, value)); }

// Called with every model in order, then for the result.
struct Geometric {
  double logs = 0, sum = 0;
  bool zero = false;
};

RATFAST_HD void add(Geometric& g, double weight, double x) {
  g.zero |= x == 0;
  g.logs = plus(g.logs, times(weight, ::log(::fabs(x))));
  g.sum = plus(g.sum, times(weight, x));
}

RATFAST_HD double result(const Geometric& g) {
  const double magnitude = g.zero ? 0.0 : ::exp(g.logs);
  return g.sum > 0 ? magnitude : g.sum < 0 ? -magnitude : g.sum;  // a sum of 0 or NaN is the result
}

struct Fisher {
  double numerator = 0, denominator = 0, plain = 0;
};

RATFAST_HD void add(Fisher& f, double weight, double x, double information) {
  const double share = times(weight, information);
  f.numerator = plus(f.numerator, times(share, x));
  f.denominator = plus(f.denominator, share);
  f.plain = plus(f.plain, times(weight, x));
}

RATFAST_HD double result(const Fisher& f, double weights) {
  return f.denominator == 0 ? f.plain / weights : f.numerator / f.denominator;
}

// TIES' election: of the differences tau only those whose sign is that of their weighted total. Needs all of
// them twice: first for `total` = sum of weight * tau, then here.
struct Elected {
  double sum = 0, weights = 0;
};

RATFAST_HD void add(Elected& e, double total, double weight, double tau) {
  const bool agrees = ((tau > 0) & (total > 0)) | ((tau < 0) & (total < 0));
  e.sum = plus(e.sum, agrees ? times(weight, tau) : 0.0);
  e.weights = plus(e.weights, agrees ? weight : 0.0);
}

RATFAST_HD double result(const Elected& e, double total, double base, double scale, bool normalize) {
  const double value = normalize ? e.sum / e.weights : e.sum;
  const double moved = on_base(base, scale, value);
  return total == 0 ? base : total != total ? total : moved;
}

}  // namespace ratfast
