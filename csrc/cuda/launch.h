// The arithmetic of csrc/core on tensors in the memory of one CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "../core/leaf.h"

namespace ratfast::cuda {

// As many models as one call can mix or multiply, and combine.
inline constexpr int kMaxSources = 1024;
inline constexpr int kMaxCombined = 512;

// Whether kernels of this library can run on a device: the driver may be too old, the device not one they
// were compiled for.
cudaError_t probe(int device);

// How many outputs a pass over the sources makes. With more of them the sources are read again, so that no
// output may be a source then.
int outputs_per_pass(int outputs, int sources);

// See core/mix.h; pointers are the device's. Work is queued on the stream, and the tables travel as kernel
// arguments, so that the call may be captured in a CUDA graph.
cudaError_t mix(const std::vector<MixSegment>& segments, int outputs, int sources, const double* weights,
                cudaStream_t stream);

// float64 numbers of device memory that gram works in.
long long gram_workspace(const std::vector<GramSegment>& segments, int sources);

// Inner products of N models, tensor by tensor: result (segments, N, N), like the workspace the device's.
// Held in float64; the order of the sums depends on the tensors' sizes and N alone.
cudaError_t gram(const std::vector<GramSegment>& segments, int sources, double* workspace, double* result,
                 cudaStream_t stream);

// See core/combine_formula.h. Segments are whole tensors (first = 0).
cudaError_t combine(const std::vector<CombineSegment>& segments, const CombineOptions& options,
                    cudaStream_t stream);

// See core/adam.h.
cudaError_t adam(const std::vector<AdamSegment>& segments, const float* steps, const AdamOptions& options,
                 cudaStream_t stream);

}  // namespace ratfast::cuda
