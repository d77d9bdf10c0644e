// The kernel of the gradients' norm, and the table that describes its work.
#pragma once

#include "../core/norm.h"
#include "step_kernel.cuh"

namespace ratfast::cuda {

struct NormTable {
  static constexpr int kSegments = 900;
  Chunks<kSegments> chunks;
  const void* data[kSegments];
  DType types[kSegments];
  bool first, last;   // of the launches of one call
  unsigned* tickets;  // 0, and 0 again in the end
  double* total;      // of the launches before
  double* partial;    // of each block
  DeviceNumber grad_scale;
  double max_norm;
  double* norm;
  double* multiplier;
  float* found_inf;
};
static_assert(sizeof(NormTable) <= 32764);

constexpr int kNormCount = 4;  // elements of a load
constexpr int kNormLoads = 4;  // loads of a thread that are on their way together
constexpr long long kNormChunk = static_cast<long long>(kThreads) * kNormCount * kNormLoads;

// The sum over the threads of a block, in a fixed order; valid in thread 0.
__device__ __forceinline__ double block_sum(double value, double* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
    __syncthreads();
  }
  return shared[0];
}

__global__ void __launch_bounds__(kThreads) norm_kernel(const __grid_constant__ NormTable table) {
  __shared__ double shared[kThreads];
  __shared__ bool last;
  double sum = 0;
  int place = 0;
  for (long long chunk = blockIdx.x; chunk < table.chunks.total(); chunk += gridDim.x) {
    while (table.chunks.chunk_end[place] <= chunk) ++place;
    const DType type = table.types[place];
    const void* data = table.data[place];
    const long long numel = table.chunks.numel[place];
    const long long start = (chunk - table.chunks.chunk_begin(place)) * kNormChunk;
    if (table.chunks.aligned[place] && start + kNormChunk <= numel) {
      Elements<kNormCount> raw[kNormLoads];
#pragma unroll
      for (int i = 0; i < kNormLoads; ++i)
        raw[i].load(type, data, start + (static_cast<long long>(i) * kThreads + threadIdx.x) * kNormCount);
#pragma unroll
      for (int i = 0; i < kNormLoads; ++i) {
        double values[kNormCount];
        raw[i].convert(type, values);
#pragma unroll
        for (int e = 0; e < kNormCount; ++e) sum = fma(values[e], values[e], sum);
      }
      continue;
    }
    const long long end = start + kNormChunk < numel ? start + kNormChunk : numel;
    for (long long index = start + threadIdx.x; index < end; index += kThreads) {
      const double value = load_scalar<double>(type, data, index);
      sum = fma(value, value, sum);
    }
  }
  const double of_block = block_sum(sum, shared);
  if (threadIdx.x == 0) {
    table.partial[blockIdx.x] = of_block;
    last = take_ticket(table.tickets);
  }
  __syncthreads();
  if (!last) return;
  double rest = 0;
  for (int i = threadIdx.x; i < gridDim.x; i += kThreads) rest += __ldcg(table.partial + i);
  const double total = block_sum(rest, shared);
  if (threadIdx.x != 0) return;
  const double all = table.first ? total : *table.total + total;
  *table.total = all;
  if (!table.last) return;
  const Clipping result = clipping(all, or_else(table.grad_scale, 1.0), table.max_norm);
  *table.norm = result.norm;
  *table.multiplier = result.multiplier;
  *table.found_inf = result.finite ? 0.0f : 1.0f;
}

}  // namespace ratfast::cuda
