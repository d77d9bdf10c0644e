// The arithmetic of csrc/core on tensors in the memory of one CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "../core/combine_formula.h"
#include "../core/leaf.h"

namespace ratfast::cuda {

// As many models as one call can mix or multiply, and combine.
inline constexpr int kMaxSources = 1024;
inline constexpr int kMaxCombined = 512;

// Whether kernels of this library can run on a device: the driver may be too old, the device not one they were
// compiled for.
cudaError_t probe(int device);

// How many outputs a pass over the sources makes. With more of them the sources are read again, so that no
// output may be a source then.
int outputs_per_pass(int outputs, int sources);

// See core/mix.h; pointers are the device's. Work is queued on the stream, and the tables travel as kernel
// arguments, so that the call may be captured in a CUDA graph.
cudaError_t mix(const std::vector<MixSegment>& segments, int outputs, int sources, const double* weights,
                cudaStream_t stream);

// The inner products of N models, tensor by tensor.
struct GramSegment {
  long long numel;
  const void* const* sources;  // N
  const DType* types;          // N
};

// float64 numbers of device memory that gram works in.
long long gram_workspace(const std::vector<GramSegment>& segments, int sources);

// result (segments, N, N) and workspace are the device's. Held in float64; the order of the sums depends on
// the tensors' sizes and N alone.
cudaError_t gram(const std::vector<GramSegment>& segments, int sources, double* workspace, double* result,
                 cudaStream_t stream);

// One tensor of every model.
struct CombineSegment {
  long long numel;
  const void* const* sources;  // N, for fisher followed by their N diagonals
  const DType* source_types;
  const void* base;  // or null
  DType base_type;
  void* output;
  DType output_type;
  const float* thresholds;  // N, or null
  std::uint64_t key;        // of the random draws
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

// See core/combine_formula.h. An output may be the memory of a source or of the base of its segment.
cudaError_t combine(const std::vector<CombineSegment>& segments, const CombineOptions& options,
                    cudaStream_t stream);

// See core/adam.h.
cudaError_t adam(const std::vector<AdamSegment>& segments, const float* steps, const AdamOptions& options,
                 cudaStream_t stream);

}  // namespace ratfast::cuda
