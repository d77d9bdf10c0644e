#include "norm_kernel.cuh"

#include <algorithm>
#include <memory>

namespace ratfast::cuda {
namespace {

cudaError_t launch_norm(NormTable& table, cudaStream_t stream) {
  int blocks = 0;
  const cudaError_t error = grid_for(norm_kernel, std::max<long long>(1, table.chunks.total()), blocks);
  if (error != cudaSuccess) return error;
  RATFAST_LAUNCH(norm_kernel, std::min(blocks, kMostPartials), stream, table);
  table.chunks.segments = 0;
  table.first = false;
  return cudaGetLastError();
}

}  // namespace

cudaError_t norm(const std::vector<NormSegment>& segments, const DeviceNorm& device, double max_norm,
                 cudaStream_t stream) {
  const auto table = std::make_unique<NormTable>();
  auto& chunks = table->chunks;
  chunks.segments = 0;
  table->first = true;
  table->last = false;
  double* numbers = static_cast<double*>(device.workspace);
  table->tickets = static_cast<unsigned*>(device.workspace);
  table->total = numbers + 1;
  table->partial = numbers + 2;
  table->grad_scale = device.grad_scale;
  table->max_norm = max_norm;
  table->norm = device.norm;
  table->multiplier = device.multiplier;
  table->found_inf = device.found_inf;
  for (const NormSegment& segment : segments) {
    if (segment.numel == 0) continue;
    if (chunks.segments == NormTable::kSegments) {
      const cudaError_t error = launch_norm(*table, stream);
      if (error != cudaSuccess) return error;
    }
    const long long before = chunks.total();
    table->data[chunks.segments] = segment.data;
    table->types[chunks.segments] = segment.type;
    chunks.aligned[chunks.segments] = on_boundary(segment.data);
    chunks.numel[chunks.segments] = segment.numel;
    chunks.chunk_end[chunks.segments] = before + (segment.numel + kNormChunk - 1) / kNormChunk;
    ++chunks.segments;
  }
  table->last = true;
  return launch_norm(*table, stream);
}

}  // namespace ratfast::cuda
