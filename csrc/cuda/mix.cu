#include <algorithm>
#include <memory>

#include "launch.h"
#include "mix_kernel.cuh"

namespace ratfast::cuda {
namespace {

constexpr int kMostOutputs = 8;

// What decides which kernel a segment needs.
struct Kind {
  bool wide;
  bool uniform;
  DType type;

  bool operator==(const Kind& other) const {
    return wide == other.wide && uniform == other.uniform && (!uniform || type == other.type);
  }
  // Elements per thread: 16 bytes where the sources agree on it.
  int count() const { return wide ? 2 : !uniform || type == DType::f32 ? 4 : 8; }
};

Kind kind_of(const MixSegment& s, int outputs, int sources) {
  const auto is_f64 = [](DType type) { return type == DType::f64; };
  const bool wide = std::any_of(s.source_types, s.source_types + sources, is_f64) ||
                    std::any_of(s.output_types, s.output_types + outputs, is_f64);
  const bool alike =
      std::all_of(s.source_types, s.source_types + sources, [&](DType t) { return t == s.source_types[0]; });
  const bool uniform = alike && wide == is_f64(s.source_types[0]);
  return {wide, uniform, s.source_types[0]};
}

template <class A, int most_outputs, int count, bool uniform, DType known>
cudaError_t run(const MixTable& table, cudaStream_t stream) {
  const auto kernel = mix_kernel<A, most_outputs, count, uniform, known>;
  int blocks = 0;
  const cudaError_t error = grid_for(kernel, table.chunks.total(), blocks);
  if (error != cudaSuccess) return error;
  RATFAST_LAUNCH(kernel, blocks, stream, table);
  return cudaGetLastError();
}

template <int most_outputs>
cudaError_t run_kind(const Kind& kind, const MixTable& table, cudaStream_t stream) {
  if (kind.wide && kind.uniform) return run<double, most_outputs, 2, true, DType::f64>(table, stream);
  if (kind.wide) return run<double, most_outputs, 2, false, DType::f64>(table, stream);
  if (!kind.uniform) return run<float, most_outputs, 4, false, DType::f32>(table, stream);
  if (kind.type == DType::f32) return run<float, most_outputs, 4, true, DType::f32>(table, stream);
  if (kind.type == DType::f16) return run<float, most_outputs, 8, true, DType::f16>(table, stream);
  return run<float, most_outputs, 8, true, DType::bf16>(table, stream);
}

// Outputs that the kernel for so many of them has sums for.
int room_for(int outputs) { return outputs == 1 ? 1 : outputs <= 4 ? 4 : kMostOutputs; }

template <class A>
void fill_weights(A* target, const MixTable& table, const double* weights) {
  const int room = room_for(table.outputs);
  for (int n = 0; n < table.sources; ++n)
    for (int k = 0; k < room; ++k)
      *target++ = k < table.outputs ? static_cast<A>(weights[k * table.sources + n]) : A(0);
}

cudaError_t run_outputs(const Kind& kind, MixTable& table, const double* weights, cudaStream_t stream) {
  if (table.chunks.total() == 0) return cudaSuccess;
  if (kind.wide)
    fill_weights(table.weights.wide, table, weights);
  else
    fill_weights(table.weights.narrow, table, weights);
  switch (room_for(table.outputs)) {
    case 1:
      return run_kind<1>(kind, table, stream);
    case 4:
      return run_kind<4>(kind, table, stream);
    default:
      return run_kind<kMostOutputs>(kind, table, stream);
  }
}

void add(MixTable& table, const MixSegment& s, int first_output, int count) {
  auto& chunks = table.chunks;
  const int per_segment = table.sources + table.outputs;
  int place = chunks.segments * per_segment;
  bool aligned = true;
  for (int n = 0; n < table.sources; ++n, ++place) {
    table.pointers[place] = const_cast<void*>(s.sources[n]);
    table.types[place] = s.source_types[n];
    aligned = aligned && on_boundary(s.sources[n]);
  }
  for (int k = 0; k < table.outputs; ++k, ++place) {
    table.pointers[place] = s.outputs[first_output + k];
    table.types[place] = s.output_types[first_output + k];
    aligned = aligned && on_boundary(s.outputs[first_output + k]);
  }
  const long long chunk = static_cast<long long>(kThreads) * count;
  const long long before = chunks.total();
  chunks.aligned[chunks.segments] = aligned;
  chunks.numel[chunks.segments] = s.numel;
  chunks.chunk_end[chunks.segments] = before + (s.numel + chunk - 1) / chunk;
  ++chunks.segments;
}

}  // namespace

int outputs_per_pass(int outputs, int sources) {
  const int room = MixTable::kWeights / sources;
  return std::min(outputs, room >= kMostOutputs ? kMostOutputs : room >= 4 ? 4 : 1);
}

cudaError_t mix(const std::vector<MixSegment>& segments, int outputs, int sources, const double* weights,
                cudaStream_t stream) {
  if (sources > kMaxSources) return cudaErrorInvalidValue;
  const int per_pass = outputs_per_pass(outputs, sources);
  const auto table = std::make_unique<MixTable>();
  for (int first = 0; first < outputs; first += per_pass) {
    table->sources = sources;
    table->outputs = std::min(per_pass, outputs - first);
    const double* rows = weights + static_cast<std::ptrdiff_t>(first) * sources;
    const int room = std::min(MixTable::kSegments, MixTable::kPointers / (sources + table->outputs));
    table->chunks.segments = 0;
    Kind kind{};
    for (const auto& segment : segments) {
      if (segment.numel == 0) continue;
      const Kind next = kind_of(segment, outputs, sources);
      if (table->chunks.segments > 0 && (table->chunks.segments == room || !(next == kind))) {
        const cudaError_t error = run_outputs(kind, *table, rows, stream);
        if (error != cudaSuccess) return error;
        table->chunks.segments = 0;
      }
      kind = next;
      add(*table, segment, first, kind.count());
    }
    const cudaError_t error = run_outputs(kind, *table, rows, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace ratfast::cuda
