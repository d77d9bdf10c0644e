// The operators' CUDA implementations.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../cuda/launch.h"
#include "common.h"
#include "step_arguments.h"
#include "stream.h"

namespace {

using namespace ratfast;

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

cuda::DeviceNumber device_number(const std::optional<Tensor>& number) {
  if (!number.has_value()) return {nullptr, DType::f64};
  return {number->data_ptr(), dtype_of(*number)};
}

void* workspace_of(const std::optional<Tensor>& workspace, const Tensor& like) {
  STD_TORCH_CHECK(workspace.has_value() && workspace->is_cuda() &&
                      workspace->get_device_index() == like.get_device_index() &&
                      dtype_of(*workspace) == DType::f64 && workspace->numel() == cuda::kWorkspace,
                  "ratfast: the workspace must be ", cuda::kWorkspace,
                  " float64 numbers on the tensors' device");
  return workspace->data_ptr();
}

template <class Options>
void step(const StepArguments& arguments, const std::optional<Tensor>& workspace, const Options& options,
          const StepNumbers& numbers, const StepExtras& extras,
          cudaError_t (*rule)(const std::vector<StepSegment>&, const Options&, const StepExtras&,
                              const cuda::DeviceStep&, float*, cudaStream_t)) {
  const Tensor &first = arguments.first, &steps = arguments.step_numbers;
  STD_TORCH_CHECK(first.is_cuda(), "ratfast: expected tensors on a CUDA device");
  STD_TORCH_CHECK(
      steps.is_cpu() ? !numbers.found_inf.has_value() : steps.get_device_index() == first.get_device_index(),
      "ratfast: steps must be on the tensors' device, or, without found_inf, on the CPU");
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  const bool there = !steps.is_cpu();
  const cuda::DeviceStep device{
      device_number(numbers.lr),         device_number(numbers.multiplier),
      device_number(numbers.found_inf),  device_number(numbers.average_weight),
      there ? arguments.steps : nullptr, there ? workspace_of(workspace, first) : nullptr};
  STD_CUDA_CHECK(rule(arguments.segments, options, extras, device, there ? nullptr : arguments.steps,
                      current_stream(first)));
}

void adam_step_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors max_exp_avg_sqs,
                Tensors averages, Tensors copies, const Tensor& steps, std::optional<Tensor> workspace,
                std::optional<Tensor> multiplier, std::optional<Tensor> found_inf,
                std::optional<Tensor> lr_tensor, std::optional<Tensor> average_weight_tensor, double lr,
                double average_weight, bool zero_grads, double weight_decay, bool maximize, double beta1,
                double beta2, double eps, bool decoupled, bool amsgrad, std::optional<Tensor> table) {
  const StepNumbers numbers{multiplier, found_inf, lr_tensor, average_weight_tensor};
  std::vector<const std::vector<Tensor>*> states{&exp_avgs, &exp_avg_sqs};
  if (amsgrad) states.push_back(&max_exp_avg_sqs);
  const StepArguments arguments({params, grads, states, averages, copies}, table, steps, numbers);
  step<AdamOptions>(arguments, workspace,
                    {lr, 1.0, beta1, beta2, weight_decay, eps, decoupled, amsgrad, maximize}, numbers,
                    {average_weight, zero_grads}, cuda::adam);
}

void sgd_step_(Tensors params, Tensors grads, Tensors momentum_buffers, Tensors averages, Tensors copies,
               const Tensor& steps, std::optional<Tensor> workspace, std::optional<Tensor> multiplier,
               std::optional<Tensor> found_inf, std::optional<Tensor> lr_tensor,
               std::optional<Tensor> average_weight_tensor, double lr, double average_weight, bool zero_grads,
               double weight_decay, bool maximize, double momentum, double dampening, bool nesterov,
               std::optional<Tensor> table) {
  const StepNumbers numbers{multiplier, found_inf, lr_tensor, average_weight_tensor};
  std::vector<const std::vector<Tensor>*> states;
  if (momentum != 0.0) states.push_back(&momentum_buffers);
  const StepArguments arguments({params, grads, states, averages, copies}, table, steps, numbers);
  step<SgdOptions>(arguments, workspace, {lr, 1.0, momentum, dampening, weight_decay, nesterov, maximize},
                   numbers, {average_weight, zero_grads}, cuda::sgd);
}

void gradient_norm_(Tensors grads, const Tensor& norm, const Tensor& multiplier, const Tensor& found_inf,
                    std::optional<Tensor> workspace, std::optional<Tensor> grad_scale, double max_norm,
                    std::optional<std::vector<Tensor>> tables) {
  const NormArguments arguments(grads, tables, norm, multiplier, found_inf, grad_scale);
  const Tensor& first = norm;
  STD_TORCH_CHECK(first.is_cuda(), "ratfast: expected tensors on a CUDA device");
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  const cuda::DeviceNorm device{device_number(grad_scale), static_cast<double*>(norm.data_ptr()),
                                static_cast<double*>(multiplier.data_ptr()),
                                static_cast<float*>(found_inf.data_ptr()), workspace_of(workspace, first)};
  STD_CUDA_CHECK(cuda::norm(arguments.segments, device, max_norm, current_stream(first)));
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
  library.impl("adam_step_", TORCH_BOX(&adam_step_));
  library.impl("sgd_step_", TORCH_BOX(&sgd_step_));
  library.impl("gradient_norm_", TORCH_BOX(&gradient_norm_));
  library.impl("step_table", TORCH_BOX(&step_table));
}

// For ratfast.native, before the first call on a device: what keeps this library from running there, or null.
extern "C" __attribute__((visibility("default"))) const char* ratfast_cuda_problem(int device) {
  const cudaError_t error = ratfast::cuda::probe(device);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
