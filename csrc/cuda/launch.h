// The arithmetic of csrc/core on tensors in the memory of one CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "../core/leaf.h"
#include "../core/norm.h"

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

// A number in device memory, or none.
struct DeviceNumber {
  const void* data;
  DType type;
};

// float64 numbers of device memory that steps and norms work in; zeros at first, and left as they must be for
// the next one on the stream: a counter, a sum, a sum for each block.
inline constexpr int kMostPartials = 2047;
inline constexpr int kWorkspace = kMostPartials + 2;

// What a step finds in device memory.
struct DeviceStep {
  DeviceNumber lr;          // instead of the option
  DeviceNumber multiplier;  // likewise
  DeviceNumber found_inf;   // unless 0, the step is skipped
  DeviceNumber average_weight;
  float* steps;     // made so far, incremented unless the step is skipped; or null, for those on the host
  void* workspace;  // with steps
};

// See core/step.h. One launch for some 300 tensors of the same arithmetic and, with steps on the host, step
// number.
cudaError_t adam(const std::vector<StepSegment>& segments, const AdamOptions& options,
                 const StepExtras& extras, const DeviceStep& device, float* host_steps, cudaStream_t stream);
cudaError_t sgd(const std::vector<StepSegment>& segments, const SgdOptions& options, const StepExtras& extras,
                const DeviceStep& device, float* host_steps, cudaStream_t stream);

struct DeviceNorm {
  DeviceNumber grad_scale;
  double* norm;
  double* multiplier;
  float* found_inf;
  void* workspace;
};

// See core/norm.h. The order of the sum depends on the tensors' sizes and the device; one launch for 900
// tensors.
cudaError_t norm(const std::vector<NormSegment>& segments, const DeviceNorm& device, double max_norm,
                 cudaStream_t stream);

}  // namespace ratfast::cuda
