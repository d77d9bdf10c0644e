// The arguments of optimizer steps, checked, as raw memory.
#pragma once

#include <optional>
#include <vector>

#include "../core/norm.h"
#include "../core/step.h"
#include "common.h"

namespace ratfast {

// Refuses what is not one number of a type on the device of the tensors.
inline void check_number(const std::optional<Tensor>& number, const Tensor& like, const char* name) {
  if (!number.has_value()) return;
  STD_TORCH_CHECK(number->numel() == 1 && number->is_cuda() == like.is_cuda() &&
                      number->get_device_index() == like.get_device_index(),
                  "ratfast: ", name, " must be one number on the tensors' device");
  const DType type = dtype_of(*number);
  STD_TORCH_CHECK(type == DType::f32 || type == DType::f64, "ratfast: ", name, " must be float32 or float64");
}

// What a step reads beside the tensors, if it lies in memory.
struct StepNumbers {
  std::optional<Tensor> multiplier;
  std::optional<Tensor> found_inf;
  std::optional<Tensor> lr;
  std::optional<Tensor> average_weight;
};

struct StepArguments {
  // `states` are those that the rule has.
  StepArguments(Tensors params, Tensors grads, const std::vector<const std::vector<Tensor>*>& states,
                Tensors averages, Tensors copies, const Tensor& step_numbers, const StepNumbers& numbers) {
    const std::size_t count = params.size();
    const auto fits = [count](Tensors list) { return list.empty() || list.size() == count; };
    bool fit = count > 0 && grads.size() == count && fits(averages) && fits(copies);
    for (const auto* list : states) fit = fit && list->size() == count;
    STD_TORCH_CHECK(
        fit, "ratfast: the lists of parameters, gradients, states, averages and copies differ in length");
    std::vector<const std::vector<Tensor>*> lists{&params, &grads, &averages, &copies};
    lists.insert(lists.end(), states.begin(), states.end());
    check_alike(count, lists);
    const Tensor& first = params.front();
    check_number(numbers.multiplier, first, "multiplier");
    check_number(numbers.found_inf, first, "found_inf");
    check_number(numbers.lr, first, "lr");
    check_number(numbers.average_weight, first, "average_weight");
    STD_TORCH_CHECK(step_numbers.is_contiguous() &&
                        step_numbers.numel() == static_cast<std::int64_t>(count) &&
                        step_numbers.scalar_type() == torch::headeronly::ScalarType::Float,
                    "ratfast: steps must be one contiguous float32 number per parameter");
    steps = static_cast<float*>(step_numbers.data_ptr());
    segments.reserve(count);
    for (std::size_t t = 0; t < count; ++t) {
      StepSegment s{};
      s.numel = params[t].numel();
      s.param = params[t].data_ptr();
      s.param_type = dtype_of(params[t]);
      s.grad = grads[t].data_ptr();
      s.grad_type = dtype_of(grads[t]);
      for (std::size_t i = 0; i < states.size(); ++i) {
        const Tensor& state = (*states[i])[t];
        s.states[i] = state.data_ptr();
        const DType type = dtype_of(state);
        STD_TORCH_CHECK(i == 0 || type == s.state_type,
                        "ratfast: the states of a parameter differ in element type");
        s.state_type = type;
      }
      if (!averages.empty()) {
        s.average = averages[t].data_ptr();
        s.average_type = dtype_of(averages[t]);
      }
      if (!copies.empty()) {
        s.copy = copies[t].data_ptr();
        s.copy_type = dtype_of(copies[t]);
      }
      segments.push_back(s);
    }
    const char* problem = memory_problem(segments);
    STD_TORCH_CHECK(problem == nullptr, "ratfast: ", problem);
  }

  std::vector<StepSegment> segments;
  float* steps;
};

// The arguments of gradient_norm_, checked.
struct NormArguments {
  NormArguments(Tensors grads, const Tensor& norm, const Tensor& multiplier, const Tensor& found_inf,
                const std::optional<Tensor>& grad_scale) {
    STD_TORCH_CHECK(!grads.empty(), "ratfast: there are no gradients");
    check_alike(grads.size(), {&grads});
    const Tensor& first = grads.front();
    check_number(norm, first, "norm");
    check_number(multiplier, first, "multiplier");
    check_number(found_inf, first, "found_inf");
    check_number(grad_scale, first, "grad_scale");
    STD_TORCH_CHECK(dtype_of(norm) == DType::f64 && dtype_of(multiplier) == DType::f64 &&
                        dtype_of(found_inf) == DType::f32,
                    "ratfast: norm and multiplier must be float64, found_inf float32");
    for (const Tensor& grad : grads) segments.push_back({grad.numel(), grad.data_ptr(), dtype_of(grad)});
  }

  std::vector<NormSegment> segments;
};

}  // namespace ratfast
