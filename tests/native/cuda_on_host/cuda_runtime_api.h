// Just enough of CUDA to compile csrc/cuda for the host and run its kernels, one block after another, the
// threads of a block in turns: each runs until it waits for the others or ends.
#pragma once

#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

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
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, std::size_t) {
  return *blocks = 8, cudaSuccess;
}
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

template <class T>
T __ldcg(const T* p) {
  return *p;
}
inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* p, unsigned n) { return (*p += n) - n; }

inline double __dmul_rn(double a, double b) { return a * b; }  // compiled without contraction
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __ddiv_rn(double a, double b) { return a / b; }

template <class T>
T atomicAdd(T* p, T value) {
  const T before = *p;
  *p += value;
  return before;
}

// The threads of a block, each on a stack of its own that serves all launches.
class Block {
 public:
  void run(unsigned threads, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    while (fibers_.size() < threads) {
      fibers_.push_back(std::make_unique<Fiber>());
      start(*fibers_.back());
    }
    for (unsigned t = 0; t < threads; ++t) fibers_[t]->done = false;
    for (bool waiting = true; waiting;) {
      waiting = false;
      for (unsigned t = 0; t < threads; ++t) {
        if (fibers_[t]->done) continue;
        threadIdx.x = t;
        current_ = fibers_[t].get();
        if (_setjmp(scheduler_) == 0) _longjmp(current_->place, 1);
        waiting = waiting || !current_->done;
      }
    }
  }
  void wait() {
    if (_setjmp(current_->place) == 0) _longjmp(scheduler_, 1);
  }

 private:
  struct Fiber {
    std::jmp_buf place;
    ucontext_t context;
    bool done = true;
    std::vector<char> stack = std::vector<char>(256 << 10);
  };

  void start(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, loop, 0);
    current_ = &fiber;
    if (_setjmp(scheduler_) == 0) setcontext(&fiber.context);
  }
  static void loop();

  std::vector<std::unique_ptr<Fiber>> fibers_;
  Fiber* current_ = nullptr;
  const std::function<void()>* kernel_ = nullptr;
  std::jmp_buf scheduler_;
};

inline Block block;

inline void Block::loop() {
  for (;;) {
    block.wait();
    (*block.kernel_)();
    block.current_->done = true;
  }
}

inline void __syncthreads() { block.wait(); }

#define RATFAST_LAUNCH(kernel, blocks, stream, ...)                   \
  (static_cast<void>(stream), ++launches, gridDim.x = (blocks), [&] { \
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)        \
      block.run(kThreads, [&] { kernel(__VA_ARGS__); });              \
  }())
