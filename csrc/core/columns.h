// What gram and combine work on, on every device.
#pragma once

#include "combine_formula.h"

namespace ratfast {

// One tensor of every model.
struct GramSegment {
  std::int64_t numel;
  const void* const* sources;  // N
  const DType* types;          // N
};

struct CombineSegment {
  std::int64_t numel;
  const void* const* sources;  // N, for fisher followed by their N diagonals
  const DType* source_types;
  const void* base;  // or null
  DType base_type;
  void* output;  // may be the memory of a source or of the base
  DType output_type;
  const float* thresholds;  // N, or null
  std::uint64_t key;        // of the tensor, for the random draws
  std::int64_t first;       // place of element 0 within its tensor, for the random draws
};

struct CombineOptions {
  CombineKind kind;
  int models;
  const double* weights;        // N
  const double* densities;      // N, or null
  const std::int64_t* streams;  // N, or null: of the models, for the random draws
  std::uint64_t seed;
  double scale;
  bool normalize;
};

}  // namespace ratfast
