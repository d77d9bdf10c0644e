// What the kernels share: loads and stores of several elements, chunks of many tensors, the grid.
#pragma once

#include "../core/leaf.h"

namespace ratfast::cuda {

constexpr int kThreads = 256;

// A test compiles the kernels for the host and brings its own.
#if !defined(RATFAST_LAUNCH)
#define RATFAST_LAUNCH(kernel, blocks, stream, table) kernel<<<blocks, kThreads, 0, stream>>>(table)
#endif

// Streams through the caches: every element is read once and written once.
template <class Word>
__device__ __forceinline__ void load_words(unsigned char* data, const void* p, int words) {
#pragma unroll
  for (int i = 0; i < words; ++i) {
    const Word word = __ldcs(static_cast<const Word*>(p) + i);
    memcpy(data + i * sizeof(Word), &word, sizeof(Word));
  }
}

template <class Word>
__device__ __forceinline__ void store_words(void* p, const unsigned char* data, int words) {
#pragma unroll
  for (int i = 0; i < words; ++i) {
    Word word;
    memcpy(&word, data + i * sizeof(Word), sizeof(Word));
    static_cast<Word*>(p)[i] = word;
  }
}

// In the widest words that `bytes` is made of.
template <int bytes>
__device__ __forceinline__ void load_bytes(unsigned char* data, const void* p) {
  if constexpr (bytes % 16 == 0)
    load_words<uint4>(data, p, bytes / 16);
  else if constexpr (bytes == 8)
    load_words<uint2>(data, p, 1);
  else
    load_words<unsigned>(data, p, bytes / 4);
}

template <int bytes>
__device__ __forceinline__ void store_bytes(void* p, const unsigned char* data) {
  if constexpr (bytes % 16 == 0)
    store_words<uint4>(p, data, bytes / 16);
  else if constexpr (bytes == 8)
    store_words<uint2>(p, data, 1);
  else
    store_words<unsigned>(p, data, bytes / 4);
}

// `count` elements of a type known when running. Loading and converting are apart, so that many loads can be
// on their way before the first is waited for.
template <int count>
struct Elements {
  alignas(16) unsigned char data[count * 8];

  __device__ __forceinline__ void load(DType type, const void* p, long long index) {
    const char* at = static_cast<const char*>(p) + index * item_size(type);
    if (type == DType::f64)
      load_bytes<count * 8>(data, at);
    else if (type == DType::f32)
      load_bytes<count * 4>(data, at);
    else
      load_bytes<count * 2>(data, at);
  }

  template <class A>
  __device__ __forceinline__ void convert(DType type, A (&values)[count]) const {
    if (type == DType::f64)
      unpack(DType::f64, values);
    else if (type == DType::f32)
      unpack(DType::f32, values);
    else if (type == DType::f16)
      unpack(DType::f16, values);
    else
      unpack(DType::bf16, values);
  }

  template <class A>
  __device__ __forceinline__ static void store(DType type, void* p, long long index,
                                               const A (&values)[count]) {
    if (type == DType::f64)
      store_as<DType::f64>(p, index, values);
    else if (type == DType::f32)
      store_as<DType::f32>(p, index, values);
    else if (type == DType::f16)
      store_as<DType::f16>(p, index, values);
    else
      store_as<DType::bf16>(p, index, values);
  }

  // Into bytes of its own: if the types shared them, the compiler would merge the branches, and the bytes
  // would pass through local memory.
  template <DType type, class A>
  __device__ __forceinline__ static void store_as(void* p, long long index, const A (&values)[count]) {
    constexpr int size = item_size(type);
    alignas(16) unsigned char bytes[count * size];
#pragma unroll
    for (int i = 0; i < count; ++i) store_packed<A>(type, bytes, i, values[i]);
    store_bytes<count * size>(static_cast<char*>(p) + index * size, bytes);
  }

  // With the type known to the compiler, so that the bytes stay in registers.
  template <class A>
  __device__ __forceinline__ void unpack(DType type, A (&values)[count]) const {
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = load_packed<A>(type, data, i);
  }
};

// Tensors cut into chunks of kThreads * count elements; the chunks of all of them are numbered in a row.
template <int capacity>
struct Chunks {
  int segments;
  bool aligned[capacity];  // every tensor of the segment on a boundary of 16 bytes
  long long numel[capacity];
  long long chunk_end[capacity];

  __host__ __device__ __forceinline__ long long total() const {
    return segments == 0 ? 0 : chunk_end[segments - 1];
  }

  // The segment that a chunk is of. Segments are few, chunks of one block mostly of the same one.
  __device__ __forceinline__ int find(long long chunk) const {
    int low = 0, high = segments - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (chunk_end[middle] > chunk)
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }

  __device__ __forceinline__ long long chunk_begin(int segment) const {
    return segment == 0 ? 0 : chunk_end[segment - 1];
  }
};

// The scalar counterpart of a vector of core: see core/adam_formula.h.
template <class A>
struct ScalarOps {
  __device__ __forceinline__ static A all(A x) { return x; }
  __device__ __forceinline__ static A mul(A a, A b) { return a * b; }
  __device__ __forceinline__ static A div(A a, A b) { return a / b; }
  __device__ __forceinline__ static float madd(float a, float b, float c) { return fmaf(a, b, c); }
  __device__ __forceinline__ static double madd(double a, double b, double c) { return fma(a, b, c); }
  __device__ __forceinline__ static float square_root(float a) { return sqrtf(a); }
  __device__ __forceinline__ static double square_root(double a) { return sqrt(a); }
  __device__ __forceinline__ static A maximum(A a, A b) { return a > b || a != a ? a : b; }
};

inline bool on_boundary(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

// Blocks for a kernel that strides over `chunks`: as many as the device holds at once, no more. All of them
// run from start to end side by side, so that no part of a last wave leaves processors idle.
template <class Kernel>
cudaError_t grid_for(Kernel* kernel, long long chunks, int& blocks) {
  int device = 0, processors = 0, resident = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0);
  const long long most = static_cast<long long>(processors) * (resident > 0 ? resident : 1);
  blocks = static_cast<int>(chunks < most ? chunks : most);
  return error;
}

}  // namespace ratfast::cuda
