// The launcher of optimizer steps, for every rule.
#pragma once

#include <algorithm>
#include <memory>

#include "step_kernel.cuh"

namespace ratfast::cuda {

inline bool is_aligned(const StepSegment& s) {
  return on_boundary(s.param) && on_boundary(s.grad) &&
         std::all_of(s.states, s.states + kMostStates, on_boundary) && on_boundary(s.average) &&
         on_boundary(s.copy);
}

// Launches what the table holds, and empties it.
template <class Options, class A>
cudaError_t launch_steps(StepTable<Options, A>& table, cudaStream_t stream) {
  if (table.chunks.segments == 0) return cudaSuccess;
  constexpr DType own = sizeof(A) == 8 ? DType::f64 : DType::f32;
  const StepSegment *begin = table.segments, *end = begin + table.chunks.segments;
  const auto all_plain = [&](DType grads) {
    return std::all_of(begin, end, [&](const StepSegment& s) { return is_plain(s, own, grads); });
  };
  const bool extra =
      table.extras.zero_grads || table.dynamic || table.found_inf.data != nullptr ||
      std::any_of(begin, end, [](const StepSegment& s) { return s.average != nullptr || s.copy != nullptr; });
  auto kernel =
      extra ? step_kernel<Options, A, false, own, true> : step_kernel<Options, A, false, own, false>;
  if (all_plain(own))
    kernel = extra ? step_kernel<Options, A, true, own, true> : step_kernel<Options, A, true, own, false>;
  if constexpr (sizeof(A) == 4) {
    if (all_plain(DType::bf16))
      kernel = extra ? step_kernel<Options, A, true, DType::bf16, true>
                     : step_kernel<Options, A, true, DType::bf16, false>;
    else if (all_plain(DType::f16))
      kernel = extra ? step_kernel<Options, A, true, DType::f16, true>
                     : step_kernel<Options, A, true, DType::f16, false>;
  }
  int blocks = 0;
  // Steps of tensors without elements are counted too.
  const cudaError_t error = grid_for(kernel, std::max<long long>(1, table.chunks.total()), blocks);
  if (error != cudaSuccess) return error;
  RATFAST_LAUNCH(kernel, blocks, stream, table);
  table.chunks.segments = 0;
  return cudaGetLastError();
}

// The segments whose arithmetic runs in A. With steps on the host, those of one launch share a step's number.
template <class Options, class A>
cudaError_t step_segments(const std::vector<StepSegment>& segments, const Options& options,
                          const StepExtras& extras, const DeviceStep& device, const float* host_steps,
                          cudaStream_t stream) {
  const auto table = std::make_unique<StepTable<Options, A>>();
  auto& chunks = table->chunks;
  chunks.segments = 0;
  table->options = options;
  table->extras = extras;
  table->lr = device.lr;
  table->multiplier = device.multiplier;
  table->found_inf = device.found_inf;
  table->average_weight = device.average_weight;
  table->steps = device.steps;
  table->tickets = static_cast<unsigned*>(device.workspace);
  table->dynamic = device.steps != nullptr || device.lr.data != nullptr || device.multiplier.data != nullptr;
  for (std::size_t t = 0; t < segments.size(); ++t) {
    const StepSegment& segment = segments[t];
    if (is_wide(segment) != (sizeof(A) == 8) || (segment.numel == 0 && device.steps == nullptr)) continue;
    const double step = device.steps == nullptr ? host_steps[t] + 1.0 : 0.0;
    if (chunks.segments == StepTable<Options, A>::kSegments || (chunks.segments > 0 && step != table->step)) {
      const cudaError_t error = launch_steps(*table, stream);
      if (error != cudaSuccess) return error;
    }
    if (chunks.segments == 0) {
      table->step = step;
      table->scalars = step_scalars<A>(options, step);
    }
    constexpr long long chunk = static_cast<long long>(kThreads) * kStepCount;
    const long long before = chunks.total();
    table->segments[chunks.segments] = segment;
    table->place[chunks.segments] = static_cast<int>(t);
    chunks.aligned[chunks.segments] = is_aligned(segment);
    chunks.numel[chunks.segments] = segment.numel;
    chunks.chunk_end[chunks.segments] = before + (segment.numel + chunk - 1) / chunk;
    ++chunks.segments;
  }
  return launch_steps(*table, stream);
}

template <class Options>
cudaError_t step(const std::vector<StepSegment>& segments, const Options& options, const StepExtras& extras,
                 const DeviceStep& device, float* host_steps, cudaStream_t stream) {
  cudaError_t error = step_segments<Options, float>(segments, options, extras, device, host_steps, stream);
  if (error == cudaSuccess && std::any_of(segments.begin(), segments.end(), is_wide))
    error = step_segments<Options, double>(segments, options, extras, device, host_steps, stream);
  if (error == cudaSuccess && device.steps == nullptr)
    for (std::size_t t = 0; t < segments.size(); ++t) host_steps[t] += 1;
  return error;
}

}  // namespace ratfast::cuda
