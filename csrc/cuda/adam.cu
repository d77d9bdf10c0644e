#include "step_launch.cuh"

namespace ratfast::cuda {

cudaError_t adam(const std::vector<StepSegment>& segments, const AdamOptions& options,
                 const StepExtras& extras, const DeviceStep& device, float* host_steps, cudaStream_t stream) {
  return step(segments, options, extras, device, host_steps, stream);
}

}  // namespace ratfast::cuda
