// The operators' CUDA implementations.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../cuda/launch.h"
#include "common.h"

namespace {

using namespace ratfast;

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void mix_(Tensors outputs, Tensors sources, const Tensor& weights) {
  const MixArguments arguments(outputs, sources, weights);
  const Tensor& first = outputs.front();
  STD_TORCH_CHECK(first.is_cuda(), "ratfast: expected tensors on a CUDA device");
  STD_TORCH_CHECK(arguments.num_sources <= cuda::kMaxSources, "ratfast: at most ", cuda::kMaxSources,
                  " models can be mixed at once on a CUDA device");
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  if (cuda::outputs_per_pass(arguments.num_outputs, arguments.num_sources) < arguments.num_outputs) {
    // Several passes: a source that is also an output must outlive the first one.
    std::vector<Tensor> kept = sources;
    bool copied = false;
    const std::size_t per_model = arguments.segments.size();
    for (std::size_t i = 0; i < sources.size(); ++i) {
      for (int k = 0; k < arguments.num_outputs; ++k) {
        if (sources[i].numel() == 0 ||
            outputs[k * per_model + i % per_model].data_ptr() != sources[i].data_ptr())
          continue;
        kept[i] = torch::stable::clone(sources[i]);
        copied = true;
        break;
      }
    }
    if (copied) return mix_(outputs, kept, weights);
  }
  STD_CUDA_CHECK(cuda::mix(arguments.segments, arguments.num_outputs, arguments.num_sources,
                           arguments.weight_values, current_stream(first)));
}

void adam_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors max_exp_avg_sqs,
           const Tensor& steps, double lr, double beta1, double beta2, double weight_decay, double eps,
           bool decoupled, bool amsgrad, bool maximize) {
  const AdamArguments arguments(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, amsgrad);
  const Tensor& first = params.front();
  STD_TORCH_CHECK(first.is_cuda(), "ratfast: expected tensors on a CUDA device");
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  STD_CUDA_CHECK(cuda::adam(arguments.segments, arguments.steps,
                            {lr, beta1, beta2, weight_decay, eps, decoupled, amsgrad, maximize},
                            current_stream(first)));
}

Tensor gram(Tensors sources, std::int64_t models) {
  using torch::headeronly::ScalarType;
  const GramArguments arguments(sources, models);
  const Tensor& first = sources.front();
  STD_TORCH_CHECK(first.is_cuda(), "ratfast: expected tensors on a CUDA device");
  STD_TORCH_CHECK(models <= cuda::kMaxSources, "ratfast: at most ", cuda::kMaxSources,
                  " models can be multiplied at once on a CUDA device");
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  const std::int64_t room = cuda::gram_workspace(arguments.segments, arguments.num_sources);
  const auto tensors = static_cast<std::int64_t>(arguments.segments.size());
  const Tensor workspace = torch::stable::new_empty(first, {room}, ScalarType::Double);
  const Tensor result = torch::stable::new_empty(first, {tensors, models, models}, ScalarType::Double);
  STD_CUDA_CHECK(cuda::gram(arguments.segments, arguments.num_sources,
                            static_cast<double*>(workspace.data_ptr()),
                            static_cast<double*>(result.data_ptr()), current_stream(first)));
  // Waits for the stream: what follows is decided on the CPU.
  return torch::stable::to(result, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

void combine_(Tensors outputs, Tensors sources, Tensors bases, std::string kind, const Tensor& weights,
              std::optional<Tensor> thresholds, std::optional<Tensor> densities, std::optional<Tensor> keys,
              std::optional<Tensor> streams, std::int64_t seed, double scale, bool normalize) {
  const CombineArguments arguments(outputs, sources, bases, kind, weights, thresholds, densities, keys,
                                   streams, seed, scale, normalize);
  const Tensor& first = outputs.front();
  STD_TORCH_CHECK(first.is_cuda(), "ratfast: expected tensors on a CUDA device");
  STD_TORCH_CHECK(arguments.options.models <= cuda::kMaxCombined, "ratfast: at most ", cuda::kMaxCombined,
                  " models can be combined at once on a CUDA device");
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  STD_CUDA_CHECK(cuda::combine(arguments.segments, arguments.options, current_stream(first)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ratfast, CUDA, library) {
  library.impl("gram", TORCH_BOX(&gram));
  library.impl("combine_", TORCH_BOX(&combine_));
  library.impl("mix_", TORCH_BOX(&mix_));
  library.impl("adam_", TORCH_BOX(&adam_));
}

// For ratfast.native, before the first call on a device: what keeps this library from running there, or null.
extern "C" __attribute__((visibility("default"))) const char* ratfast_cuda_problem(int device) {
  const cudaError_t error = ratfast::cuda::probe(device);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
