// The loops that are compiled once per instruction set, and the tables that lead to them.
#pragma once

#include <cstdint>

#include "adam_formula.h"
#include "combine_formula.h"
#include "dtype.h"
#include "sgd_formula.h"
#include "step_formula.h"

namespace ratfast {

// One tensor of every model: numel elements each, at any alignment.
struct MixSegment {
  std::int64_t numel;
  const void* const* sources;  // N
  const DType* source_types;   // N
  void* const* outputs;        // K
  const DType* output_types;   // K
};

struct MixWeights {
  const double* values;  // (sources, outputs), row-major: read side by side
  int outputs;
  int sources;
  double* scratch;           // kLongestStep numbers per source and output, on a line of 64 bytes
  const bool* stream;        // (outputs): write past the caches: these are large, and no sources
  bool few_sources_at_once;  // one output: read a few sources at a time, in runs of some KiB
};

// The most elements of each source that mix keeps at a time, on any instruction set.
inline constexpr int kLongestStep = 32;

// One tensor of every model, at any alignment.
struct GramSegment {
  std::int64_t numel;
  const void* const* sources;  // N
  const DType* types;          // N
};

// A rectangle of the Gram matrix: models [first_row, first_row + rows) by [first_column, ...).
struct GramTile {
  int first_row;
  int rows;  // at most kGramModels, as columns
  int first_column;
  int columns;
};
inline constexpr int kGramModels = 24;
inline constexpr int kGramLanes = 8;

// One tensor of every model, at any alignment.
struct CombineSegment {
  std::int64_t numel;
  const void* const* sources;  // N, for fisher followed by their N diagonals
  const DType* source_types;
  const void* base;  // or null
  DType base_type;
  void* output;  // may be a source or the base
  DType output_type;
  const float* thresholds;         // N, or null
  std::uint64_t key;               // of the random draws
  std::int64_t first;              // place of element 0 within its tensor, for the random draws
  const double* limits = nullptr;  // N, or null: trimming_limit of the thresholds, set by combine
};

struct CombineOptions {
  CombineKind kind;
  int models;
  const double* weights;        // N
  const double* densities;      // N, or null
  const std::int64_t* streams;  // N, or null: of the random draws
  std::uint64_t seed;
  double scale;
  bool normalize;
};

struct MagnitudeSegment {
  std::int64_t numel;
  const void* source;
  DType source_type;
  const void* base;  // or null
  DType base_type;
};

inline constexpr int kSquareLanes = 32;

struct Leaf {
  // Both return whether all that was written is finite.
  bool (*mix)(const MixSegment&, std::int64_t begin, std::int64_t end, const MixWeights&);
  bool (*combine)(const CombineSegment&, std::int64_t begin, std::int64_t end, const CombineOptions&);
  // Adds to lanes (kGramModels, kGramModels, kGramLanes) the products of elements [begin, end); that of
  // element begin + i to lane i % kGramLanes. Of pairs below the diagonal some are left out.
  void (*gram)(const GramSegment&, std::int64_t begin, std::int64_t end, const GramTile&, double* lanes);
  // |float(source - base)| of elements [begin, end).
  void (*magnitudes)(const MagnitudeSegment&, std::int64_t begin, std::int64_t end, float* result);
  // Sums the squares of elements [begin, end) into kSquareLanes lanes; that of element begin + i into lane
  // i % kSquareLanes.
  void (*squares)(const void* data, DType type, std::int64_t begin, std::int64_t end, double* lanes);
  // A step of elements [begin, end).
  void (*adam_f32)(const StepSegment&, std::int64_t begin, std::int64_t end, const AdamScalars<float>&,
                   const StepExtras&);
  void (*adam_f64)(const StepSegment&, std::int64_t begin, std::int64_t end, const AdamScalars<double>&,
                   const StepExtras&);
  void (*sgd_f32)(const StepSegment&, std::int64_t begin, std::int64_t end, const SgdScalars<float>&,
                  const StepExtras&);
  void (*sgd_f64)(const StepSegment&, std::int64_t begin, std::int64_t end, const SgdScalars<double>&,
                  const StepExtras&);
};

extern const Leaf leaf_default;
#if defined(__x86_64__)
extern const Leaf leaf_avx2;
extern const Leaf leaf_avx512;
#endif

}  // namespace ratfast
