// The loops that are compiled once per instruction set, and the tables that lead to them.
#pragma once

#include <cstdint>

#include "adam_formula.h"
#include "dtype.h"

namespace ratfast {

// One tensor of every model: numel elements each, at any alignment.
struct MixSegment {
  std::int64_t numel;
  const void* const* sources;  // N
  const DType* source_types;   // N
  void* const* outputs;        // K
  const DType* output_types;   // K
};

struct AdamSegment {
  std::int64_t numel;
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;  // null unless amsgrad
  DType param_type;
  DType grad_type;
  DType state_type;
};

template <class A>
struct MixWeights {
  const A* values;  // (outputs, sources), row-major
  int outputs;
  int sources;
  A* scratch;   // kLongestStep elements per output
  bool stream;  // write past the caches: the outputs are large and none of them is a source
};

// The most elements that a loop handles at a time, on any instruction set.
inline constexpr int kLongestStep = 64;

struct Leaf {
  void (*mix_f32)(const MixSegment&, std::int64_t begin, std::int64_t end, const MixWeights<float>&);
  void (*mix_f64)(const MixSegment&, std::int64_t begin, std::int64_t end, const MixWeights<double>&);
  void (*adam_f32)(const AdamSegment&, std::int64_t begin, std::int64_t end, const AdamScalars<float>&);
  void (*adam_f64)(const AdamSegment&, std::int64_t begin, std::int64_t end, const AdamScalars<double>&);
};

extern const Leaf leaf_default;
#if defined(__x86_64__)
extern const Leaf leaf_avx2;
extern const Leaf leaf_avx512;
#endif

}  // namespace ratfast
