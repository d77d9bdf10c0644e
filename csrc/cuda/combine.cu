#include <algorithm>
#include <memory>

#include "combine_kernel.cuh"
#include "launch.h"

namespace ratfast::cuda {
namespace {

template <CombineKind kind>
cudaError_t run(const CombineTable& table, cudaStream_t stream) {
  if (table.chunks.total() == 0) return cudaSuccess;
  int blocks = 0;
  const cudaError_t error = grid_for(combine_kernel<kind>, table.chunks.total(), blocks);
  if (error != cudaSuccess) return error;
  RATFAST_LAUNCH(combine_kernel<kind>, blocks, stream, table);
  return cudaGetLastError();
}

cudaError_t run_kind(CombineKind kind, const CombineTable& table, cudaStream_t stream) {
  switch (kind) {
    case CombineKind::min:
      return run<CombineKind::min>(table, stream);
    case CombineKind::max:
      return run<CombineKind::max>(table, stream);
    case CombineKind::geometric:
      return run<CombineKind::geometric>(table, stream);
    case CombineKind::fisher:
      return run<CombineKind::fisher>(table, stream);
    case CombineKind::sum:
      return run<CombineKind::sum>(table, stream);
    case CombineKind::elect:
      return run<CombineKind::elect>(table, stream);
  }
  return cudaErrorInvalidValue;
}

void add(CombineTable& table, const CombineSegment& s) {
  auto& chunks = table.chunks;
  const int place = chunks.segments;
  bool aligned = on_boundary(s.output) && on_boundary(s.base);
  for (int n = 0; n < table.lists; ++n) {
    table.pointers[place * table.lists + n] = s.sources[n];
    table.types[place * table.lists + n] = s.source_types[n];
    aligned = aligned && on_boundary(s.sources[n]);
  }
  if (s.thresholds != nullptr)
    std::copy_n(s.thresholds, table.models, table.thresholds + place * table.models);
  table.outputs[place] = s.output;
  table.output_types[place] = s.output_type;
  table.bases[place] = s.base;
  table.base_types[place] = s.base_type;
  table.keys[place] = s.key;
  constexpr long long chunk = static_cast<long long>(kThreads) * kCombineCount;
  const long long before = chunks.total();
  chunks.aligned[place] = aligned;
  chunks.numel[place] = s.numel;
  chunks.chunk_end[place] = before + (s.numel + chunk - 1) / chunk;
  ++chunks.segments;
}

}  // namespace

cudaError_t combine(const std::vector<CombineSegment>& segments, const CombineOptions& options,
                    cudaStream_t stream) {
  if (options.models > kMaxCombined) return cudaErrorInvalidValue;
  const auto table = std::make_unique<CombineTable>();
  table->chunks.segments = 0;
  table->models = options.models;
  table->lists = options.kind == CombineKind::fisher ? 2 * options.models : options.models;
  table->trimmed = !segments.empty() && segments[0].thresholds != nullptr;
  table->dropped = options.densities != nullptr;
  table->normalize = options.normalize;
  table->seed = static_cast<std::uint32_t>(options.seed);
  table->scale = options.scale;
  for (int n = 0; n < options.models; ++n) {
    table->weights[n] = options.weights[n];
    table->densities[n] = table->dropped ? options.densities[n] : 1;
    table->streams[n] = static_cast<std::uint32_t>(options.streams == nullptr ? n : options.streams[n]);
  }
  const int room = std::min(CombineTable::kSegments, CombineTable::kPointers / table->lists);
  for (const auto& segment : segments) {
    if (segment.numel == 0) continue;
    if (table->chunks.segments == room) {
      const cudaError_t error = run_kind(options.kind, *table, stream);
      if (error != cudaSuccess) return error;
      table->chunks.segments = 0;
    }
    add(*table, segment);
  }
  return run_kind(options.kind, *table, stream);
}

}  // namespace ratfast::cuda
