// The operators' CPU implementations.
#include <torch/csrc/stable/ops.h>

#include "../core/adam.h"
#include "../core/combine.h"
#include "../core/gram.h"
#include "../core/kth.h"
#include "../core/mix.h"
#include "common.h"

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

void adam_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors max_exp_avg_sqs,
           const Tensor& steps, double lr, double beta1, double beta2, double weight_decay, double eps,
           bool decoupled, bool amsgrad, bool maximize) {
  const AdamArguments arguments(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, amsgrad);
  STD_TORCH_CHECK(params.front().is_cpu(), "ratfast: expected tensors on the CPU");
  adam(arguments.segments, arguments.steps,
       {lr, beta1, beta2, weight_decay, eps, decoupled, amsgrad, maximize}, torch_threads);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ratfast, CPU, library) {
  library.impl("mix_", TORCH_BOX(&mix_));
  library.impl("gram", TORCH_BOX(&gram_));
  library.impl("combine_", TORCH_BOX(&combine_));
  library.impl("kth_magnitudes", TORCH_BOX(&kth_magnitudes));
  library.impl("adam_", TORCH_BOX(&adam_));
}
