// The kernel of mix, and the table that describes its work.
#pragma once

#include "device.cuh"

namespace ratfast::cuda {

// All of it is a kernel argument; those may hold 32,764 bytes from compute capability 7.0 on.
struct MixTable {
  static constexpr int kSegments = 256;
  static constexpr int kPointers = 1536;
  static constexpr int kWeights = 1024;
  Chunks<kSegments> chunks;
  int sources;
  int outputs;
  void* pointers[kPointers];  // of each segment first its sources, then its outputs
  DType types[kPointers];
  // (outputs, sources), in the type of the sums. Narrowed on the host: a device converts doubles slowly.
  union {
    float narrow[kWeights];
    double wide[kWeights];
  } weights;

  template <class A>
  __device__ __forceinline__ A weight(int output, int source) const {
    if constexpr (sizeof(A) == 8)
      return weights.wide[output * sources + source];
    else
      return weights.narrow[output * sources + source];
  }
};
static_assert(sizeof(MixTable) <= 32764);

// Sums are held for up to most_outputs outputs and `count` elements per thread. If `uniform`, all sources are
// of type `known`, and the compiler can load several of them at once.
template <class A, int most_outputs, int count, bool uniform, DType known>
__global__ void __launch_bounds__(kThreads) mix_kernel(const __grid_constant__ MixTable table) {
  for (long long chunk = blockIdx.x; chunk < table.chunks.total(); chunk += gridDim.x) {
    const int segment = table.chunks.find(chunk);
    const long long numel = table.chunks.numel[segment];
    const long long start = (chunk - table.chunks.chunk_begin(segment)) * kThreads * count;
    const int first = segment * (table.sources + table.outputs);
    void* const* outputs = table.pointers + first + table.sources;
    const DType* output_types = table.types + first + table.sources;

    if (table.chunks.aligned[segment] && start + kThreads * count <= numel) {
      const long long index = start + static_cast<long long>(threadIdx.x) * count;
      A sums[most_outputs][count] = {};
#pragma unroll 4
      for (int n = 0; n < table.sources; ++n) {
        const DType type = uniform ? known : table.types[first + n];
        Elements<count> elements;
        elements.load(type, table.pointers[first + n], index);
        A values[count];
        elements.convert(type, values);
#pragma unroll
        for (int k = 0; k < most_outputs; ++k) {
          if (k >= table.outputs) break;
          const A weight = table.template weight<A>(k, n);
#pragma unroll
          for (int i = 0; i < count; ++i) sums[k][i] = ScalarOps<A>::madd(values[i], weight, sums[k][i]);
        }
      }
#pragma unroll
      for (int k = 0; k < most_outputs; ++k) {
        if (k >= table.outputs) break;
        Elements<count>::store(output_types[k], outputs[k], index, sums[k]);
      }
      continue;
    }

    const long long end = start + kThreads * count < numel ? start + kThreads * count : numel;
    for (long long index = start + threadIdx.x; index < end; index += kThreads) {
      A sums[most_outputs] = {};
      for (int n = 0; n < table.sources; ++n) {
        const DType type = uniform ? known : table.types[first + n];
        const A value = load_scalar<A>(type, table.pointers[first + n], index);
#pragma unroll
        for (int k = 0; k < most_outputs; ++k) {
          if (k >= table.outputs) break;
          sums[k] = ScalarOps<A>::madd(value, table.template weight<A>(k, n), sums[k]);
        }
      }
#pragma unroll
      for (int k = 0; k < most_outputs; ++k) {
        if (k >= table.outputs) break;
        store_scalar<A>(output_types[k], outputs[k], index, sums[k]);
      }
    }
  }
}

}  // namespace ratfast::cuda
