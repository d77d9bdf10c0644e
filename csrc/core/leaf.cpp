// The inner loops. Compiled several times, each with other instruction-set flags and another RATFAST_LEAF;
// all but the one table at the end stays inside this object (a test looks for weak symbols).
#include "leaf.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ratfast {
namespace {

#if defined(__AVX512F__)
#include "vec_avx512.h"
#elif defined(__AVX2__)
#include "vec_avx2.h"
#else
#include "vec_default.h"
#endif

// Bytes ahead of the loads: past what the hardware fetches by itself at the start of each page.
constexpr int kPrefetch = 1024;

// Sums that a step holds in registers: kUnroll vectors of so many outputs.
constexpr int kUnroll = 4;
#if defined(__AVX512F__)
constexpr int kMaxOutputsAtOnce = 4;
#else
constexpr int kMaxOutputsAtOnce = 2;
#endif

template <class Ops>
constexpr int kStep = kUnroll * Ops::width;

template <int n>
struct Number {
  static constexpr int value = n;
};

// The elements [0, count) at p, the rest of the vector zero.
template <class Ops>
RATFAST_INLINE typename Ops::V load_part(DType type, const char* p, std::int64_t count) {
  if (count >= Ops::width) return Ops::load(type, p);
  alignas(64) char padded[64] = {};
  if (count > 0) memcpy(padded, p, static_cast<std::size_t>(count) * item_size(type));
  return Ops::load(type, padded);
}

template <class Ops>
RATFAST_INLINE void store_part(DType type, char* p, std::int64_t count, typename Ops::V v) {
  if (count >= Ops::width) return Ops::template store<false>(type, p, v);
  alignas(64) char padded[64];
  Ops::template store<false>(type, padded, v);
  if (count > 0) memcpy(p, padded, static_cast<std::size_t>(count) * item_size(type));
}

// Sums of `outputs` consecutive rows of weights over a step of elements from `index` on; `count` of them
// exist.
template <class Ops, int outputs, bool whole>
RATFAST_INLINE void mix_step(const MixSegment& segment, std::int64_t index, std::int64_t count,
                             const typename Ops::A* weights, int sources,
                             typename Ops::V (&sums)[outputs][kUnroll]) {
  for (int k = 0; k < outputs; ++k)
    for (int u = 0; u < kUnroll; ++u) sums[k][u] = Ops::all(0);
  for (int n = 0; n < sources; ++n) {
    const DType type = segment.source_types[n];
    const int size = item_size(type);
    const char* source = static_cast<const char*>(segment.sources[n]) + index * size;
    if (whole)
      for (int line = 0; line < kStep<Ops> * size; line += 64) __builtin_prefetch(source + kPrefetch + line);
    const auto add = [&](DType known) __attribute__((always_inline)) {
      for (int u = 0; u < kUnroll; ++u) {
        const char* p = source + u * Ops::width * size;
        const auto value = whole ? Ops::load(known, p) : load_part<Ops>(known, p, count - u * Ops::width);
        for (int k = 0; k < outputs; ++k)
          sums[k][u] = Ops::madd(value, Ops::all(weights[k * sources + n]), sums[k][u]);
      }
    };
    switch (type) {
      case DType::f32:
        add(DType::f32);
        break;
      case DType::f16:
        add(DType::f16);
        break;
      case DType::bf16:
        add(DType::bf16);
        break;
      default:
        if (sizeof(typename Ops::A) == 8) add(DType::f64);
    }
  }
}

template <class Ops, bool whole, bool stream>
RATFAST_INLINE void mix_store(const MixSegment& segment, int k, std::int64_t index, std::int64_t count,
                              const typename Ops::V* sums) {
  const DType type = segment.output_types[k];
  const int size = item_size(type);
  char* target = static_cast<char*>(segment.outputs[k]) + index * size;
  for (int u = 0; u < kUnroll; ++u) {
    char* p = target + u * Ops::width * size;
    if (whole)
      Ops::template store<stream>(type, p, sums[u]);
    else
      store_part<Ops>(type, p, count - u * Ops::width, sums[u]);
  }
}

template <class Ops, bool whole, bool stream>
RATFAST_INLINE void mix_few(const MixSegment& segment, std::int64_t index, std::int64_t count,
                            const MixWeights<typename Ops::A>& weights) {
  const auto run = [&](auto outputs) __attribute__((always_inline)) {
    typename Ops::V sums[outputs.value][kUnroll];
    mix_step<Ops, outputs.value, whole>(segment, index, count, weights.values, weights.sources, sums);
    for (int k = 0; k < outputs.value; ++k) mix_store<Ops, whole, stream>(segment, k, index, count, sums[k]);
  };
  switch (weights.outputs) {
    case 1:
      run(Number<1>{});
      break;
    case 2:
      run(Number<2>{});
      break;
    case 3:
      run(Number<(kMaxOutputsAtOnce < 3 ? kMaxOutputsAtOnce : 3)>{});
      break;
    default:
      run(Number<kMaxOutputsAtOnce>{});
  }
}

// More outputs than registers hold: the sums of a step wait in the scratch until the last one has read its
// sources (which lie in the first cache by then), since an output may be a source.
template <class Ops, bool whole, bool stream>
RATFAST_INLINE void mix_many(const MixSegment& segment, std::int64_t index, std::int64_t count,
                             const MixWeights<typename Ops::A>& weights) {
  using V = typename Ops::V;
  constexpr DType wide = sizeof(typename Ops::A) == 8 ? DType::f64 : DType::f32;
  V sums[kMaxOutputsAtOnce][kUnroll];
  const auto keep = [&](int k, const V* values) __attribute__((always_inline)) {
    for (int u = 0; u < kUnroll; ++u)
      Ops::template store<false>(
          wide, reinterpret_cast<char*>(weights.scratch + k * kStep<Ops> + u * Ops::width), values[u]);
  };
  int k = 0;
  for (; k + kMaxOutputsAtOnce <= weights.outputs; k += kMaxOutputsAtOnce) {
    mix_step<Ops, kMaxOutputsAtOnce, whole>(segment, index, count, weights.values + k * weights.sources,
                                            weights.sources, sums);
    for (int j = 0; j < kMaxOutputsAtOnce; ++j) keep(k + j, sums[j]);
  }
  for (; k < weights.outputs; ++k) {
    V single[1][kUnroll];
    mix_step<Ops, 1, whole>(segment, index, count, weights.values + k * weights.sources, weights.sources,
                            single);
    keep(k, single[0]);
  }
  for (k = 0; k < weights.outputs; ++k) {
    V values[kUnroll];
    for (int u = 0; u < kUnroll; ++u)
      values[u] =
          Ops::load(wide, reinterpret_cast<const char*>(weights.scratch + k * kStep<Ops> + u * Ops::width));
    mix_store<Ops, whole, stream>(segment, k, index, count, values);
  }
}

template <class Ops, bool stream, bool many>
std::int64_t mix_whole_steps(const MixSegment& segment, std::int64_t index, std::int64_t end,
                             const MixWeights<typename Ops::A>& weights) {
  for (; index + kStep<Ops> <= end; index += kStep<Ops>) {
    if (many)
      mix_many<Ops, true, stream>(segment, index, kStep<Ops>, weights);
    else
      mix_few<Ops, true, stream>(segment, index, kStep<Ops>, weights);
  }
  return index;
}

// Elements from `begin` to the first one where all outputs lie on a line of 64 bytes, or -1 if there is none
// within a step.
std::int64_t to_aligned(const MixSegment& segment, std::int64_t begin, int outputs) {
  for (std::int64_t skip = 0; skip < kLongestStep; ++skip) {
    bool aligned = true;
    for (int k = 0; k < outputs; ++k) {
      const auto address = reinterpret_cast<std::uintptr_t>(segment.outputs[k]) +
                           static_cast<std::uintptr_t>((begin + skip) * item_size(segment.output_types[k]));
      aligned = aligned && address % 64 == 0;
    }
    if (aligned) return skip;
  }
  return -1;
}

template <class Ops>
void mix(const MixSegment& segment, std::int64_t begin, std::int64_t end,
         const MixWeights<typename Ops::A>& weights) {
  const bool many = weights.outputs > kMaxOutputsAtOnce;
  const auto parts = [&](std::int64_t index, std::int64_t until) {
    for (; index < until; index += kStep<Ops>) {
      const std::int64_t count = until - index < kStep<Ops> ? until - index : kStep<Ops>;
      many ? mix_many<Ops, false, false>(segment, index, count, weights)
           : mix_few<Ops, false, false>(segment, index, count, weights);
    }
  };
  std::int64_t index = begin;
  const std::int64_t skip = weights.stream ? to_aligned(segment, begin, weights.outputs) : -1;
  if (skip >= 0 && begin + skip + kStep<Ops> <= end) {
    parts(begin, begin + skip);
    index = begin + skip;
    index = many ? mix_whole_steps<Ops, true, true>(segment, index, end, weights)
                 : mix_whole_steps<Ops, true, false>(segment, index, end, weights);
#if defined(__SSE2__)
    __builtin_ia32_sfence();
#endif
  } else {
    index = many ? mix_whole_steps<Ops, false, true>(segment, index, end, weights)
                 : mix_whole_steps<Ops, false, false>(segment, index, end, weights);
  }
  parts(index, end);
}

// If `plain`, all tensors are of the type that the arithmetic runs in.
template <class Ops, bool whole, bool plain>
RATFAST_INLINE void adam_step(const AdamSegment& a, std::int64_t index, std::int64_t count,
                              const AdamScalars<typename Ops::A>& scalars) {
  constexpr DType own = sizeof(typename Ops::A) == 8 ? DType::f64 : DType::f32;
  const DType param_type = plain ? own : a.param_type;
  const DType grad_type = plain ? own : a.grad_type;
  const DType state_type = plain ? own : a.state_type;
  const auto at = [&](const void* p, DType type) __attribute__((always_inline)) {
    return static_cast<const char*>(p) + index * item_size(type);
  };
  const auto load = [&](const void* p, DType type) __attribute__((always_inline)) {
    if (whole) __builtin_prefetch(at(p, type) + kPrefetch);
    return whole ? Ops::load(type, at(p, type)) : load_part<Ops>(type, at(p, type), count);
  };
  const auto store = [&](void* p, DType type, typename Ops::V v) __attribute__((always_inline)) {
    char* target = const_cast<char*>(at(p, type));
    if (whole)
      Ops::template store<false>(type, target, v);
    else
      store_part<Ops>(type, target, count, v);
  };
  auto param = load(a.param, param_type);
  auto exp_avg = load(a.exp_avg, state_type);
  auto exp_avg_sq = load(a.exp_avg_sq, state_type);
  auto largest = scalars.amsgrad ? load(a.max_exp_avg_sq, state_type) : exp_avg_sq;
  adam_update<Ops>(scalars, param, load(a.grad, grad_type), exp_avg, exp_avg_sq, largest);
  store(a.param, param_type, param);
  store(a.exp_avg, state_type, exp_avg);
  store(a.exp_avg_sq, state_type, exp_avg_sq);
  if (scalars.amsgrad) store(a.max_exp_avg_sq, state_type, largest);
}

template <class Ops, bool plain>
void adam_steps(const AdamSegment& segment, std::int64_t index, std::int64_t end,
                const AdamScalars<typename Ops::A>& given) {
  const AdamScalars<typename Ops::A> scalars = given;  // a copy that no store can alias
  for (; index + Ops::width <= end; index += Ops::width)
    adam_step<Ops, true, plain>(segment, index, Ops::width, scalars);
  if (index < end) adam_step<Ops, false, plain>(segment, index, end - index, scalars);
}

template <class Ops>
void adam(const AdamSegment& segment, std::int64_t begin, std::int64_t end,
          const AdamScalars<typename Ops::A>& scalars) {
  constexpr DType own = sizeof(typename Ops::A) == 8 ? DType::f64 : DType::f32;
  if (segment.param_type == own && segment.grad_type == own && segment.state_type == own)
    adam_steps<Ops, true>(segment, begin, end, scalars);
  else
    adam_steps<Ops, false>(segment, begin, end, scalars);
}

}  // namespace

extern const Leaf RATFAST_LEAF;
const Leaf RATFAST_LEAF = {mix<FloatOps>, mix<DoubleOps>, adam<FloatOps>, adam<DoubleOps>};

}  // namespace ratfast
