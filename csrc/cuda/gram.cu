#include <algorithm>
#include <memory>

#include "gram_kernel.cuh"
#include "launch.h"

namespace ratfast::cuda {
namespace {

// Parts are whole multiples of every tile's width, and long enough that adding them up costs little.
constexpr long long kPartUnit = 1024;
constexpr long long kShortestPart = 8 * kPartUnit;
// Parts of a tensor: enough to fill a device several times over, but where there are many models their pairs
// fill it, and the workspace is what counts.
constexpr long long kMostParts = 1024;
constexpr long long kWorkspace = 1 << 22;  // numbers per tensor, unless one part alone is more

long long part_length(long long numel, int sources) {
  const long long square = static_cast<long long>(sources) * sources;
  const long long most = std::clamp<long long>(kWorkspace / square, 1, kMostParts);
  const long long length = std::max(kShortestPart, (numel + most - 1) / most);
  return (length + kPartUnit - 1) / kPartUnit * kPartUnit;
}

long long parts_of(long long numel, int sources) {
  const long long length = part_length(numel, sources);
  return (numel + length - 1) / length;
}

int segments_per_table(int sources) { return std::min(GramTable::kSegments, GramTable::kPointers / sources); }

cudaError_t run(const GramTable& table, cudaStream_t stream) {
  int blocks = 0;
  cudaError_t error = cudaSuccess;
  if (table.parts() > 0) {
    error = grid_for(gram_kernel, table.parts() * table.tiles, blocks);
    if (error != cudaSuccess) return error;
    RATFAST_LAUNCH(gram_kernel, blocks, stream, table);
    error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  const long long pairs = static_cast<long long>(table.segments) * table.sources * table.sources;
  error = grid_for(gram_parts_kernel, (pairs + 7) / 8, blocks);
  if (error != cudaSuccess) return error;
  RATFAST_LAUNCH(gram_parts_kernel, blocks, stream, table);
  return cudaGetLastError();
}

}  // namespace

long long gram_workspace(const std::vector<GramSegment>& segments, int sources) {
  // Tables follow one another on the stream, so that they can share it.
  const auto room = static_cast<std::size_t>(segments_per_table(sources));
  long long most = 1;
  for (std::size_t first = 0; first < segments.size(); first += room) {
    long long parts = 0;
    for (std::size_t t = first; t < std::min(segments.size(), first + room); ++t)
      parts += parts_of(segments[t].numel, sources);
    most = std::max(most, parts);
  }
  return most * sources * sources;
}

cudaError_t gram(const std::vector<GramSegment>& segments, int sources, double* workspace, double* result,
                 cudaStream_t stream) {
  if (sources > kMaxSources) return cudaErrorInvalidValue;
  const auto table = std::make_unique<GramTable>();
  table->segments = 0;
  table->sources = sources;
  table->partial = workspace;
  table->result = result;
  const int sides = sources <= kGramAlone ? 1 : (sources + kGramSide - 1) / kGramSide;
  table->tiles = sides * (sides + 1) / 2;
  for (const auto& segment : segments) {
    const int place = table->segments;
    const long long before = table->parts();
    table->numel[place] = segment.numel;
    table->length[place] = part_length(segment.numel, sources);
    table->part_end[place] = before + parts_of(segment.numel, sources);
    table->aligned[place] = std::all_of(segment.sources, segment.sources + sources, on_boundary);
    std::copy_n(segment.sources, sources, table->pointers + place * sources);
    std::copy_n(segment.types, sources, table->types + place * sources);
    if (++table->segments == segments_per_table(sources)) {
      const cudaError_t error = run(*table, stream);
      if (error != cudaSuccess) return error;
      table->result += static_cast<std::ptrdiff_t>(table->segments) * sources * sources;
      table->segments = 0;
    }
  }
  return table->segments == 0 ? cudaSuccess : run(*table, stream);
}

}  // namespace ratfast::cuda
