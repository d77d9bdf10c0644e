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

// A kernel, and how many elements each of its threads takes at once.
template <class Options, class A>
struct ChosenKernel {
  void (*kernel)(StepTable<Options, A>);
  int count;
};

template <class Options, class A, bool plain, DType own, DType grads>
ChosenKernel<Options, A> kernel_of(bool extra) {
  return {extra ? step_kernel<Options, A, plain, own, grads, true>
                : step_kernel<Options, A, plain, own, grads, false>,
          kStepCount<own>};
}

// The kernel for the types of all segments of a table.
template <class Options, class A>
ChosenKernel<Options, A> choose_kernel(const StepTable<Options, A>& table, bool extra) {
  const StepSegment *begin = table.segments, *end = begin + table.chunks.segments;
  const auto all_plain = [&](DType own, DType grads) {
    return std::all_of(begin, end, [&](const StepSegment& s) { return is_plain(s, own, grads); });
  };
  constexpr DType wide = sizeof(A) == 8 ? DType::f64 : DType::f32;
  if (all_plain(wide, wide)) return kernel_of<Options, A, true, wide, wide>(extra);
  if constexpr (sizeof(A) == 4) {
    constexpr DType f32 = DType::f32, bf16 = DType::bf16, f16 = DType::f16;
    if (all_plain(f32, bf16)) return kernel_of<Options, A, true, f32, bf16>(extra);
    if (all_plain(f32, f16)) return kernel_of<Options, A, true, f32, f16>(extra);
    if (all_plain(bf16, bf16)) return kernel_of<Options, A, true, bf16, bf16>(extra);
    if (all_plain(f16, f16)) return kernel_of<Options, A, true, f16, f16>(extra);
  }
  return kernel_of<Options, A, false, wide, wide>(extra);
}

// Launches what the table holds, and empties it.
template <class Options, class A>
cudaError_t launch_steps(StepTable<Options, A>& table, cudaStream_t stream) {
  auto& chunks = table.chunks;
  if (chunks.segments == 0) return cudaSuccess;
  const StepSegment *begin = table.segments, *end = begin + chunks.segments;
  const bool extra =
      table.extras.zero_grads || table.dynamic || table.found_inf.data != nullptr ||
      std::any_of(begin, end, [](const StepSegment& s) { return s.average != nullptr || s.copy != nullptr; });
  const auto chosen = choose_kernel(table, extra);
  const long long chunk = static_cast<long long>(kThreads) * chosen.count;
  long long before = 0;
  for (int i = 0; i < chunks.segments; ++i)
    chunks.chunk_end[i] = before += (chunks.numel[i] + chunk - 1) / chunk;
  int blocks = 0;
  // Steps of tensors without elements are counted too.
  const cudaError_t error = grid_for(chosen.kernel, std::max<long long>(1, chunks.total()), blocks);
  if (error != cudaSuccess) return error;
  RATFAST_LAUNCH(chosen.kernel, blocks, stream, table);
  chunks.segments = 0;
  return cudaGetLastError();
}

// The segments whose arithmetic runs in A. With steps on the host, those of one launch share a step's number.
template <class Options, class A>
cudaError_t step_segments(const std::vector<StepSegment>& segments, const Options& options,
                          const StepExtras& extras, const DeviceStep& device, const float* host_steps,
                          cudaStream_t stream) {
  const auto table = std::make_unique_for_overwrite<StepTable<Options, A>>();
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
    table->segments[chunks.segments] = segment;
    table->place[chunks.segments] = static_cast<int>(t);
    chunks.aligned[chunks.segments] = is_aligned(segment);
    chunks.numel[chunks.segments] = segment.numel;
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
