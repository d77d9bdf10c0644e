// Just enough of CUDA to compile csrc/cuda for the host and run its kernels one thread after another: they
// are element-wise, so that nothing but the order of the threads differs.
#pragma once

#include <cmath>
#include <cstddef>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)

struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 3, cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline int launches = 0;
inline bool misaligned = false;

template <class T>
T __ldcs(const T* p) {
  if (reinterpret_cast<std::size_t>(p) % sizeof(T) != 0) misaligned = true;
  T value;
  __builtin_memcpy(&value, p, sizeof(T));
  return value;
}

#define RATFAST_LAUNCH(kernel, blocks, stream, table)                             \
  (static_cast<void>(stream), ++launches, gridDim.x = (blocks), [&] {             \
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)                    \
      for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x) kernel(table); \
  }())
