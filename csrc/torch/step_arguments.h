// The arguments of optimizer steps, checked, as raw memory.
#pragma once

#include <cstring>
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

// The lists of a step, as whole models.
struct StepLists {
  Tensors params;
  Tensors grads;
  std::vector<const std::vector<Tensor>*> states;  // those that the rule has
  Tensors averages;
  Tensors copies;

  // The lists as raw memory, checked.
  std::vector<StepSegment> segments() const {
    const std::size_t count = params.size();
    const auto fits = [count](Tensors list) { return list.empty() || list.size() == count; };
    bool fit = count > 0 && grads.size() == count && fits(averages) && fits(copies);
    for (const auto* list : states) fit = fit && list->size() == count;
    STD_TORCH_CHECK(
        fit, "ratfast: the lists of parameters, gradients, states, averages and copies differ in length");
    std::vector<const std::vector<Tensor>*> lists{&params, &grads, &averages, &copies};
    lists.insert(lists.end(), states.begin(), states.end());
    check_alike(count, lists);
    std::vector<StepSegment> result;
    result.reserve(count);
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
      result.push_back(s);
    }
    const char* problem = memory_problem(result);
    STD_TORCH_CHECK(problem == nullptr, "ratfast: ", problem);
    return result;
  }
};

// Lists that were checked once, as the bytes of their segments: what a step reads in place of the lists.
// Whoever keeps it sees to it that the tensors stay where they are, or that their new places are written
// here.
inline Tensor step_table(Tensors params, Tensors grads, Tensors states, Tensors averages, Tensors copies) {
  const std::size_t count = params.size(), kinds = count == 0 ? 0 : states.size() / count;
  STD_TORCH_CHECK(count > 0 && states.size() == kinds * count && kinds <= kMostStates,
                  "ratfast: the list of states does not fit the parameters");
  std::vector<std::vector<Tensor>> by_kind;
  for (std::size_t i = 0; i < kinds; ++i) {
    const auto begin = states.begin() + static_cast<std::ptrdiff_t>(i * count);
    by_kind.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(count));
  }
  std::vector<const std::vector<Tensor>*> lists;
  for (const auto& list : by_kind) lists.push_back(&list);
  const std::vector<StepSegment> segments = StepLists{params, grads, lists, averages, copies}.segments();
  using namespace torch::headeronly;
  const std::vector<std::int64_t> size{static_cast<std::int64_t>(count * sizeof(StepSegment))};
  const Tensor table =
      torch::stable::empty(size, ScalarType::Byte, Layout::Strided, torch::stable::Device(DeviceType::CPU));
  std::memcpy(table.data_ptr(), segments.data(), count * sizeof(StepSegment));
  return table;
}

inline std::vector<StepSegment> segments_of(const Tensor& table) {
  STD_TORCH_CHECK(table.is_cpu() && table.is_contiguous() &&
                      table.scalar_type() == torch::headeronly::ScalarType::Byte && table.numel() > 0 &&
                      table.numel() % sizeof(StepSegment) == 0,
                  "ratfast: a table must come from step_table");
  const auto* begin = static_cast<const StepSegment*>(table.data_ptr());
  return {begin, begin + table.numel() / sizeof(StepSegment)};
}

// The arguments of a step, checked, as raw memory.
struct StepArguments {
  // With a table the lists are not looked at, and the tensors are on the device of `step_numbers`.
  StepArguments(const StepLists& lists, const std::optional<Tensor>& table, const Tensor& step_numbers,
                const StepNumbers& numbers)
      : first(table.has_value() || lists.params.empty() ? step_numbers : lists.params.front()),
        step_numbers(step_numbers),
        segments(table.has_value() ? segments_of(*table) : lists.segments()),
        steps(static_cast<float*>(step_numbers.data_ptr())) {
    if (table.has_value()) {
      for (const StepSegment& s : segments)
        for (std::size_t i = 0; i < kMostStates; ++i)
          STD_TORCH_CHECK((s.states[i] != nullptr) <= (i < lists.states.size()) &&
                              (s.states[i] != nullptr || i >= lists.states.size() || s.numel == 0),
                          "ratfast: the table is of a step with other states");
    }
    check_number(numbers.multiplier, first, "multiplier");
    check_number(numbers.found_inf, first, "found_inf");
    check_number(numbers.lr, first, "lr");
    check_number(numbers.average_weight, first, "average_weight");
    STD_TORCH_CHECK(step_numbers.is_contiguous() &&
                        step_numbers.numel() == static_cast<std::int64_t>(segments.size()) &&
                        step_numbers.scalar_type() == torch::headeronly::ScalarType::Float,
                    "ratfast: steps must be one contiguous float32 number per parameter");
  }

  const Tensor& first;  // on the device of all
  const Tensor& step_numbers;
  std::vector<StepSegment> segments;
  float* steps;
};

// The arguments of gradient_norm_, checked.
struct NormArguments {
  // The gradients of the tables too.
  NormArguments(Tensors grads, const std::optional<std::vector<Tensor>>& tables, const Tensor& norm,
                const Tensor& multiplier, const Tensor& found_inf, const std::optional<Tensor>& grad_scale) {
    STD_TORCH_CHECK(!grads.empty() || (tables.has_value() && !tables->empty()),
                    "ratfast: there are no gradients");
    if (!grads.empty()) check_alike(grads.size(), {&grads});
    const Tensor& first = grads.empty() ? norm : grads.front();
    check_number(norm, first, "norm");
    check_number(multiplier, first, "multiplier");
    check_number(found_inf, first, "found_inf");
    check_number(grad_scale, first, "grad_scale");
    STD_TORCH_CHECK(dtype_of(norm) == DType::f64 && dtype_of(multiplier) == DType::f64 &&
                        dtype_of(found_inf) == DType::f32,
                    "ratfast: norm and multiplier must be float64, found_inf float32");
    for (const Tensor& grad : grads) segments.push_back({grad.numel(), grad.data_ptr(), dtype_of(grad)});
    if (!tables.has_value()) return;
    for (const Tensor& table : *tables)
      for (const StepSegment& s : segments_of(table)) segments.push_back({s.numel, s.grad, s.grad_type});
  }

  std::vector<NormSegment> segments;
};

}  // namespace ratfast
