// The kernel of combine, and the table that describes its work.
#pragma once

#include "../core/combine_formula.h"
#include "device.cuh"

namespace ratfast::cuda {

// All of it is a kernel argument, as in mix.
struct CombineTable {
  static constexpr int kSegments = 128;
  static constexpr int kPointers = 1024;
  static constexpr int kModels = 512;
  Chunks<kSegments> chunks;
  int models;
  int lists;  // of sources: for fisher twice the models
  bool trimmed;
  bool dropped;
  bool normalize;
  std::uint32_t seed;
  double scale;
  double weights[kModels];
  double densities[kModels];
  std::uint32_t streams[kModels];
  const void* pointers[kPointers];
  DType types[kPointers];
  float thresholds[kPointers];
  void* outputs[kSegments];
  const void* bases[kSegments];  // null if there is none
  std::uint64_t keys[kSegments];
  DType output_types[kSegments];
  DType base_types[kSegments];
};
static_assert(sizeof(CombineTable) <= 32764);

// Each operation rounded by itself, as on the host.
struct ExactOps {
  using T = double;
  using Threshold = float;
  __device__ __forceinline__ static double all(double x) { return x; }
  __device__ __forceinline__ static double mul(double a, double b) { return __dmul_rn(a, b); }
  __device__ __forceinline__ static double add(double a, double b) { return __dadd_rn(a, b); }
  __device__ __forceinline__ static double sub(double a, double b) { return __dadd_rn(a, -b); }
  __device__ __forceinline__ static double div(double a, double b) { return __ddiv_rn(a, b); }
  __device__ __forceinline__ static double magnitude(double a) { return fabs(a); }
  __device__ __forceinline__ static double log(double a) { return ::log(a); }
  __device__ __forceinline__ static double exp(double a) { return ::exp(a); }
  __device__ __forceinline__ static bool below(double a, float threshold) {
    return fabsf(static_cast<float>(a)) < threshold;
  }
};

constexpr int kCombineCount = 4;  // elements per thread, and words of a Philox block

// One model's values, as they are added: of `count` elements from `index` on, which start at word `word` of
// their Philox block.
template <CombineKind kind, int count>
__device__ __forceinline__ void combine_model(const CombineTable& table, int segment, int n, long long index,
                                              const double (&values)[count], const double (&fishers)[count],
                                              const double (&bases)[count],
                                              CombineState<ExactOps> (&states)[count]) {
  PhiloxWords draws{};
  const bool dropped = of_differences(kind) && table.dropped && table.densities[n] < 1;
  if (dropped)
    draws = philox(table.seed, table.streams[n], static_cast<std::uint64_t>(index / 4), table.keys[segment]);
#pragma unroll
  for (int i = 0; i < count; ++i) {
    double value = values[i];
    if constexpr (of_differences(kind)) {
      const int place = count == 4 ? i : static_cast<int>(index % 4);
      // Chosen by comparison: an index that is not known when compiling would put the words into local
      // memory.
      const std::uint32_t word = place == 0   ? draws.word[0]
                                 : place == 1 ? draws.word[1]
                                 : place == 2 ? draws.word[2]
                                              : draws.word[3];
      value = ExactOps::sub(value, bases[i]);
      if (table.trimmed) value = combine_trim<ExactOps>(value, table.thresholds[segment * table.models + n]);
      if (dropped) value = combine_thin<ExactOps>(value, word, table.densities[n]);
    }
    combine_add<ExactOps>(kind, states[i], value, fishers[i], table.weights[n]);
  }
}

template <CombineKind kind>
__global__ void __launch_bounds__(kThreads, 2) combine_kernel(const __grid_constant__ CombineTable table) {
  constexpr int count = kCombineCount;
  constexpr bool fisher = kind == CombineKind::fisher;
  // Models asked for before the first is used, see mix_kernel.cuh: as many as registers hold beside the
  // states.
  constexpr int batch = fisher || of_differences(kind) ? 2 : 4;
  for (long long chunk = blockIdx.x; chunk < table.chunks.total(); chunk += gridDim.x) {
    const int segment = table.chunks.find(chunk);
    const long long numel = table.chunks.numel[segment];
    const long long start = (chunk - table.chunks.chunk_begin(segment)) * kThreads * count;
    const void* const* sources = table.pointers + segment * table.lists;
    const DType* types = table.types + segment * table.lists;
    const void* base = table.bases[segment];
    const long long index = start + static_cast<long long>(threadIdx.x) * count;

    if (table.chunks.aligned[segment] && index + count <= numel) {
      CombineState<ExactOps> states[count];
      double bases[count] = {};
      if (of_differences(kind) && base != nullptr) {
        Elements<count> raw;
        raw.load(table.base_types[segment], base, index);
        raw.convert(table.base_types[segment], bases);
      }
#pragma unroll
      for (int i = 0; i < count; ++i) states[i] = combine_begin<ExactOps>(kind);
#pragma unroll 1
      for (int n = 0; n < table.models; n += batch) {
        Elements<count> raw[batch], raw_fisher[fisher ? batch : 1];
#pragma unroll
        for (int j = 0; j < batch; ++j) {
          if (n + j >= table.models) continue;
          raw[j].load(types[n + j], sources[n + j], index);
          if constexpr (fisher)
            raw_fisher[j].load(types[table.models + n + j], sources[table.models + n + j], index);
        }
#pragma unroll
        for (int j = 0; j < batch; ++j) {
          if (n + j >= table.models) continue;
          double values[count], fishers[count] = {};
          raw[j].convert(types[n + j], values);
          if constexpr (fisher) raw_fisher[j].convert(types[table.models + n + j], fishers);
          combine_model<kind>(table, segment, n + j, index, values, fishers, bases, states);
        }
      }
      double results[count];
#pragma unroll
      for (int i = 0; i < count; ++i)
        results[i] = combine_finish<ExactOps>(kind, states[i], bases[i], table.scale, table.normalize);
      Elements<count>::store(table.output_types[segment], table.outputs[segment], index, results);
      continue;
    }

    // Element by element: see mix_kernel.cuh.
    const bool rest = table.chunks.aligned[segment];
    const long long end = start + kThreads * count < numel ? start + kThreads * count : numel;
    for (long long at = rest ? index : start + threadIdx.x; at < end; at += rest ? 1 : kThreads) {
      CombineState<ExactOps> states[1] = {combine_begin<ExactOps>(kind)};
      const double bases[1] = {of_differences(kind) && base != nullptr
                                   ? load_scalar<double>(table.base_types[segment], base, at)
                                   : 0.0};
      for (int n = 0; n < table.models; ++n) {
        const double values[1] = {load_scalar<double>(types[n], sources[n], at)};
        const double fishers[1] = {
            fisher ? load_scalar<double>(types[table.models + n], sources[table.models + n], at) : 0.0};
        combine_model<kind>(table, segment, n, at, values, fishers, bases, states);
      }
      const double result = combine_finish<ExactOps>(kind, states[0], bases[0], table.scale, table.normalize);
      store_scalar<double>(table.output_types[segment], table.outputs[segment], at, result);
    }
  }
}

}  // namespace ratfast::cuda
