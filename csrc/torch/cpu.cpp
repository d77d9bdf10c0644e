// The operators' CPU implementations.
#include <torch/csrc/stable/ops.h>

#include "../core/combine.h"
#include "../core/gram.h"
#include "../core/kth.h"
#include "../core/mix.h"
#include "common.h"
#include "step_arguments.h"

namespace {

using namespace ratfast;

void torch_threads(std::int64_t total, std::int64_t grain, const Range& range) {
  torch::stable::parallel_for(0, total, grain, range);
}

void mix_(Tensors outputs, Tensors sources, const Tensor& weights) {
  const MixArguments arguments(outputs, sources, weights);
  STD_TORCH_CHECK(outputs.front().is_cpu(), "ratfast: expected tensors on the CPU");
  mix(arguments.segments, arguments.num_outputs, arguments.num_sources, arguments.weight_values,
      torch_threads);
}

Tensor gram_(Tensors sources, std::int64_t models) {
  const GramArguments arguments(sources, models);
  STD_TORCH_CHECK(sources.front().is_cpu(), "ratfast: expected tensors on the CPU");
  const std::vector<std::int64_t> shape{static_cast<std::int64_t>(arguments.segments.size()), models, models};
  Tensor result = torch::stable::new_empty(sources.front(), shape, torch::headeronly::ScalarType::Double);
  gram(arguments.segments, arguments.num_sources, result.mutable_data_ptr<double>(), torch_threads);
  return result;
}

void combine_(Tensors outputs, Tensors sources, Tensors bases, std::string kind, const Tensor& weights,
              std::optional<Tensor> thresholds, std::optional<Tensor> densities, std::optional<Tensor> keys,
              std::optional<Tensor> streams, std::int64_t seed, double scale, bool normalize) {
  const CombineArguments arguments(outputs, sources, bases, kind, weights, thresholds, densities, keys,
                                   streams, seed, scale, normalize);
  STD_TORCH_CHECK(outputs.front().is_cpu(), "ratfast: expected tensors on the CPU");
  combine(arguments.segments, arguments.options, torch_threads);
}

Tensor kth_magnitudes(Tensors sources, Tensors bases, const Tensor& counts, bool together) {
  STD_TORCH_CHECK(!sources.empty() && (bases.empty() || bases.size() == sources.size()),
                  "ratfast: the lists of sources and bases differ in length");
  check_alike(sources.size(), {&sources, &bases});
  STD_TORCH_CHECK(sources.front().is_cpu(), "ratfast: expected tensors on the CPU");
  const std::int64_t groups = together ? 1 : static_cast<std::int64_t>(sources.size());
  const auto* numbers_of =
      numbers<std::int64_t>(counts, torch::headeronly::ScalarType::Long, groups, "counts");
  std::vector<MagnitudeSegment> segments;
  for (std::size_t t = 0; t < sources.size(); ++t)
    segments.push_back({sources[t].numel(), sources[t].data_ptr(), dtype_of(sources[t]),
                        bases.empty() ? nullptr : bases[t].data_ptr(),
                        bases.empty() ? DType::f32 : dtype_of(bases[t])});
  const std::vector<std::int64_t> shape{groups};
  Tensor result = torch::stable::new_empty(counts, shape, torch::headeronly::ScalarType::Float);
  float* found = result.mutable_data_ptr<float>();
  for (std::int64_t g = 0; g < groups; ++g)
    found[g] = together ? kth_magnitude(segments, numbers_of[g], torch_threads)
                        : kth_magnitude({segments[g]}, numbers_of[g], torch_threads);
  return result;
}

double value_of(const std::optional<Tensor>& number, double otherwise) {
  return number.has_value() ? load_scalar<double>(dtype_of(*number), number->data_ptr(), 0) : otherwise;
}

// Steps by one of the rules of core, or skips it.
template <class Options>
void step(const StepArguments& arguments, Options options, const StepNumbers& numbers, double average_weight,
          bool zero,
          void (*rule)(const std::vector<StepSegment>&, float*, const Options&, const StepExtras&,
                       const ParallelFor&)) {
  STD_TORCH_CHECK(arguments.first.is_cpu() && arguments.step_numbers.is_cpu(),
                  "ratfast: expected tensors on the CPU");
  if (value_of(numbers.found_inf, 0.0) != 0.0) {
    if (zero) zero_grads(arguments.segments, torch_threads);
    return;
  }
  options.lr = value_of(numbers.lr, options.lr);
  options.multiplier = value_of(numbers.multiplier, 1.0);
  rule(arguments.segments, arguments.steps, options, {value_of(numbers.average_weight, average_weight), zero},
       torch_threads);
}

void adam_step_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors max_exp_avg_sqs,
                Tensors averages, Tensors copies, const Tensor& steps, std::optional<Tensor>,
                std::optional<Tensor> multiplier, std::optional<Tensor> found_inf,
                std::optional<Tensor> lr_tensor, std::optional<Tensor> average_weight_tensor, double lr,
                double average_weight, bool zero_grads, double weight_decay, bool maximize, double beta1,
                double beta2, double eps, bool decoupled, bool amsgrad, std::optional<Tensor> table) {
  const StepNumbers numbers{multiplier, found_inf, lr_tensor, average_weight_tensor};
  std::vector<const std::vector<Tensor>*> states{&exp_avgs, &exp_avg_sqs};
  if (amsgrad) states.push_back(&max_exp_avg_sqs);
  step<AdamOptions>({{params, grads, states, averages, copies}, table, steps, numbers},
                    {lr, 1.0, beta1, beta2, weight_decay, eps, decoupled, amsgrad, maximize}, numbers,
                    average_weight, zero_grads, adam);
}

void sgd_step_(Tensors params, Tensors grads, Tensors momentum_buffers, Tensors averages, Tensors copies,
               const Tensor& steps, std::optional<Tensor>, std::optional<Tensor> multiplier,
               std::optional<Tensor> found_inf, std::optional<Tensor> lr_tensor,
               std::optional<Tensor> average_weight_tensor, double lr, double average_weight, bool zero_grads,
               double weight_decay, bool maximize, double momentum, double dampening, bool nesterov,
               std::optional<Tensor> table) {
  const StepNumbers numbers{multiplier, found_inf, lr_tensor, average_weight_tensor};
  std::vector<const std::vector<Tensor>*> states;
  if (momentum != 0.0) states.push_back(&momentum_buffers);
  step<SgdOptions>({{params, grads, states, averages, copies}, table, steps, numbers},
                   {lr, 1.0, momentum, dampening, weight_decay, nesterov, maximize}, numbers, average_weight,
                   zero_grads, sgd);
}

void gradient_norm_(Tensors grads, const Tensor& norm, const Tensor& multiplier, const Tensor& found_inf,
                    std::optional<Tensor>, std::optional<Tensor> grad_scale, double max_norm,
                    std::optional<std::vector<Tensor>> tables) {
  const NormArguments arguments(grads, tables, norm, multiplier, found_inf, grad_scale);
  STD_TORCH_CHECK(norm.is_cpu(), "ratfast: expected tensors on the CPU");
  const Clipping result =
      clipping(square_sum(arguments.segments, torch_threads), value_of(grad_scale, 1.0), max_norm);
  *static_cast<double*>(norm.data_ptr()) = result.norm;
  *static_cast<double*>(multiplier.data_ptr()) = result.multiplier;
  *static_cast<float*>(found_inf.data_ptr()) = result.finite ? 0.0f : 1.0f;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ratfast, CPU, library) {
  library.impl("mix_", TORCH_BOX(&mix_));
  library.impl("gram", TORCH_BOX(&gram_));
  library.impl("combine_", TORCH_BOX(&combine_));
  library.impl("kth_magnitudes", TORCH_BOX(&kth_magnitudes));
  library.impl("adam_step_", TORCH_BOX(&adam_step_));
  library.impl("sgd_step_", TORCH_BOX(&sgd_step_));
  library.impl("gradient_norm_", TORCH_BOX(&gradient_norm_));
  library.impl("step_table", TORCH_BOX(&step_table));
}
