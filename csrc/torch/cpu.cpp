// The operators' CPU implementations.
#include "../core/adam.h"
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
  library.impl("adam_", TORCH_BOX(&adam_));
}
