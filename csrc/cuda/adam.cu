#include <algorithm>
#include <memory>

#include "adam_kernel.cuh"
#include "launch.h"

namespace ratfast::cuda {
namespace {

bool is_wide(const AdamSegment& s) {
  return s.param_type == DType::f64 || s.grad_type == DType::f64 || s.state_type == DType::f64;
}

bool is_aligned(const AdamSegment& s) {
  return on_boundary(s.param) && on_boundary(s.grad) && on_boundary(s.exp_avg) && on_boundary(s.exp_avg_sq) &&
         on_boundary(s.max_exp_avg_sq);
}

template <class A>
cudaError_t run(AdamTable<A>& table, cudaStream_t stream) {
  if (table.chunks.total() == 0) return cudaSuccess;
  constexpr DType own = sizeof(A) == 8 ? DType::f64 : DType::f32;
  const bool plain = std::all_of(
      table.segments, table.segments + table.chunks.segments,
      [](const AdamSegment& s) { return s.param_type == own && s.grad_type == own && s.state_type == own; });
  const auto kernel = plain ? adam_kernel<A, true> : adam_kernel<A, false>;
  int blocks = 0;
  const cudaError_t error = grid_for(kernel, table.chunks.total(), blocks);
  if (error != cudaSuccess) return error;
  RATFAST_LAUNCH(kernel, blocks, stream, table);
  table.chunks.segments = 0;
  return cudaGetLastError();
}

// The segments whose arithmetic runs in A. Those of one launch share a step number.
template <class A>
cudaError_t run_all(const std::vector<AdamSegment>& segments, const float* steps, const AdamOptions& options,
                    cudaStream_t stream) {
  const auto table = std::make_unique<AdamTable<A>>();
  auto& chunks = table->chunks;
  chunks.segments = 0;
  float step = 0;
  for (std::size_t t = 0; t < segments.size(); ++t) {
    const AdamSegment& segment = segments[t];
    if (segment.numel == 0 || is_wide(segment) != (sizeof(A) == 8)) continue;
    if (chunks.segments == AdamTable<A>::kSegments || (chunks.segments > 0 && steps[t] != step)) {
      const cudaError_t error = run(*table, stream);
      if (error != cudaSuccess) return error;
    }
    if (chunks.segments == 0) {
      step = steps[t];
      table->scalars = adam_scalars<A>(options, step);
    }
    constexpr long long chunk = static_cast<long long>(kThreads) * kAdamCount;
    const long long before = chunks.total();
    table->segments[chunks.segments] = segment;
    chunks.aligned[chunks.segments] = is_aligned(segment);
    chunks.numel[chunks.segments] = segment.numel;
    chunks.chunk_end[chunks.segments] = before + (segment.numel + chunk - 1) / chunk;
    ++chunks.segments;
  }
  return run(*table, stream);
}

}  // namespace

cudaError_t adam(const std::vector<AdamSegment>& segments, const float* steps, const AdamOptions& options,
                 cudaStream_t stream) {
  const cudaError_t error = run_all<float>(segments, steps, options, stream);
  return error != cudaSuccess ? error : run_all<double>(segments, steps, options, stream);
}

}  // namespace ratfast::cuda
