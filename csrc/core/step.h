// Optimizer steps over tensors in host memory.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "leaf.h"
#include "parallel.h"

namespace ratfast {

// First byte, and the byte after the last.
using Span = std::pair<std::uintptr_t, std::uintptr_t>;

inline Span span_of(const void* p, DType type, std::int64_t numel) {
  const auto begin = reinterpret_cast<std::uintptr_t>(p);
  return {begin, begin + static_cast<std::uintptr_t>(numel * item_size(type))};
}

// Where all tensors lie, in order of their addresses.
inline std::vector<Span> memory_spans(const std::vector<StepSegment>& segments) {
  std::vector<Span> spans;
  const auto add = [&](const void* p, DType type, std::int64_t numel) {
    if (p != nullptr && numel != 0) spans.push_back(span_of(p, type, numel));
  };
  for (const StepSegment& s : segments) {
    add(s.param, s.param_type, s.numel);
    add(s.grad, s.grad_type, s.numel);
    for (const void* state : s.states) add(state, s.state_type, s.numel);
    add(s.average, s.average_type, s.numel);
    add(s.copy, s.copy_type, s.numel);
  }
  std::sort(spans.begin(), spans.end());
  return spans;
}

// What is wrong with where the tensors lie, or null: no two of those written may share memory, nor one of
// them with a gradient.
inline const char* memory_problem(const std::vector<StepSegment>& segments) {
  const std::vector<Span> spans = memory_spans(segments);
  for (std::size_t i = 1; i < spans.size(); ++i)
    if (spans[i].first < spans[i - 1].second) return "two tensors of a step share memory";
  return nullptr;
}

// steps[i] is the number of steps that segments[i] has made, and is incremented. The arithmetic runs in
// float, or in double where is_wide.
void adam(const std::vector<StepSegment>& segments, float* steps, const AdamOptions& options,
          const StepExtras& extras, const ParallelFor& parallel_for);
void sgd(const std::vector<StepSegment>& segments, float* steps, const SgdOptions& options,
         const StepExtras& extras, const ParallelFor& parallel_for);

// Overwrites the gradients with zeros.
void zero_grads(const std::vector<StepSegment>& segments, const ParallelFor& parallel_for);

}  // namespace ratfast
