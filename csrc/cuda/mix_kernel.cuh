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
  // (sources, most outputs of the kernel), the outputs that are not there 0, in the type of the sums: one or
  // two wide loads per source. Narrowed on the host: a device converts doubles slowly.
  union {
    alignas(16) float narrow[kWeights];
    alignas(16) double wide[kWeights];
  } weights;

  template <class A>
  __device__ __forceinline__ const A* weights_as() const {
    if constexpr (sizeof(A) == 8)
      return weights.wide;
    else
      return weights.narrow;
  }
};
static_assert(sizeof(MixTable) <= 32764);

// Adds one source to the sums of all outputs. Without a look at how many outputs there are: that would put
// branches between the loads of the sources, and only one at a time would be on its way.
template <class A, int most_outputs, int count>
__device__ __forceinline__ void mix_add(A (&sums)[most_outputs][count], const A (&values)[count],
                                        const A* weights) {
#pragma unroll
  for (int k = 0; k < most_outputs; ++k)
#pragma unroll
    for (int i = 0; i < count; ++i) sums[k][i] = ScalarOps<A>::madd(values[i], weights[k], sums[k][i]);
}

// Sums are held for up to most_outputs outputs and `count` elements per thread; `uniform` if all sources are
// of type `known`. What keeps memory busy is bytes on their way, some 32 KiB per processor: so the words of
// kMixBatch sources are asked for before the first is used, 64 bytes per thread, which two resident blocks
// suffice for.
constexpr int kMixBatch = 4;

template <class A, int most_outputs, int count, bool uniform, DType known>
__global__ void __launch_bounds__(kThreads, 2) mix_kernel(const __grid_constant__ MixTable table) {
  const A* weights = table.template weights_as<A>();
  for (long long chunk = blockIdx.x; chunk < table.chunks.total(); chunk += gridDim.x) {
    const int segment = table.chunks.find(chunk);
    const long long numel = table.chunks.numel[segment];
    const long long start = (chunk - table.chunks.chunk_begin(segment)) * kThreads * count;
    const int first = segment * (table.sources + table.outputs);
    void* const* outputs = table.pointers + first + table.sources;
    const DType* output_types = table.types + first + table.sources;

    const long long index = start + static_cast<long long>(threadIdx.x) * count;
    if (table.chunks.aligned[segment] && index + count <= numel) {
      A sums[most_outputs][count] = {};
#pragma unroll 1
      for (int n = 0; n < table.sources; n += kMixBatch) {
        Elements<count> batch[kMixBatch];
#pragma unroll
        for (int j = 0; j < kMixBatch; ++j)
          if (n + j < table.sources)
            batch[j].load(uniform ? known : table.types[first + n + j], table.pointers[first + n + j], index);
#pragma unroll
        for (int j = 0; j < kMixBatch; ++j) {
          if (n + j < table.sources) {
            A values[count];
            batch[j].convert(uniform ? known : table.types[first + n + j], values);
            mix_add<A, most_outputs, count>(sums, values, weights + (n + j) * most_outputs);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < most_outputs; ++k) {
        if (k >= table.outputs) break;
        Elements<count>::store(output_types[k], outputs[k], index, sums[k]);
      }
      continue;
    }

    // Element by element: unaligned tensors, in the order that joins the accesses of neighbouring threads,
    // and what is left of an aligned one, all of which is the first thread's that finds too little.
    const bool rest = table.chunks.aligned[segment];
    const long long end = start + kThreads * count < numel ? start + kThreads * count : numel;
    for (long long at = rest ? index : start + threadIdx.x; at < end; at += rest ? 1 : kThreads) {
      A sums[most_outputs][1] = {};
#pragma unroll 4
      for (int n = 0; n < table.sources; ++n) {
        const A value[1] = {
            load_scalar<A>(uniform ? known : table.types[first + n], table.pointers[first + n], at)};
        mix_add<A, most_outputs, 1>(sums, value, weights + n * most_outputs);
      }
#pragma unroll
      for (int k = 0; k < most_outputs; ++k) {
        if (k >= table.outputs) break;
        store_scalar<A>(output_types[k], outputs[k], at, sums[k][0]);
      }
    }
  }
}

}  // namespace ratfast::cuda
