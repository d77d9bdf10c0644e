// The kernel of optimizer steps, and the table that describes its work.
#pragma once

#include "../core/leaf.h"
#include "device.cuh"
#include "launch.h"

namespace ratfast::cuda {

__device__ __forceinline__ double or_else(const DeviceNumber& number, double otherwise) {
  return number.data == nullptr ? otherwise : load_scalar<double>(number.type, number.data, 0);
}

// One element, with the interface of Elements.
struct Element {
  DType type;
  const void* at;
  long long place;

  __device__ __forceinline__ void load(DType t, const void* p, long long index) {
    type = t;
    at = p;
    place = index;
  }
  template <class A>
  __device__ __forceinline__ void convert(DType t, A (&values)[1]) const {
    values[0] = load_scalar<A>(t, at, place);
  }
  template <class A>
  __device__ __forceinline__ static void store(DType t, void* p, long long index, const A (&values)[1]) {
    store_scalar<A>(t, p, index, values[0]);
  }
};

// The value as it is read back after a store as `type`.
template <class A>
__device__ __forceinline__ A as_stored(DType type, A value) {
  if (type == DType::f64) return value;
  const float single = static_cast<float>(value);
  if (type == DType::f32) return single;
  return type == DType::f16 ? f16_to_float(float_to_f16(single)) : bf16_to_float(float_to_bf16(single));
}

// Whether this block is the last to come here; one thread of each asks. What blocks wrote before is seen by
// the last.
__device__ __forceinline__ bool take_ticket(unsigned* tickets) {
  __threadfence();
  const bool last = atomicAdd(tickets, 1u) == gridDim.x - 1;
  if (last) *tickets = 0;
  __threadfence();
  return last;
}

template <class Options, class A>
struct StepTable {
  static constexpr int kSegments = 300;
  Chunks<kSegments> chunks;
  typename Options::template Scalars<A> scalars;  // unless they depend on what is in device memory
  Options options;
  StepExtras extras;
  DeviceNumber lr, multiplier, found_inf, average_weight;
  float* steps;          // made so far, in device memory; or null
  double step;           // without steps: the number of this step
  unsigned* tickets;     // with steps: 0, and 0 again in the end
  bool dynamic;          // scalars depend on device memory
  int place[kSegments];  // of each segment among steps
  StepSegment segments[kSegments];
};
static_assert(sizeof(StepTable<AdamOptions, double>) <= 32764);

// Elements per thread: 16 bytes of what most tensors are.
template <DType own>
constexpr int kStepCount = item_size(own) == 2 ? 8 : 4;

// Blocks that a multiprocessor is to hold at least: as many as registers allow without spills.
template <class A, bool plain, DType own>
constexpr int kStepBlocks = sizeof(A) == 8                         ? 1
                            : plain && item_size(own) == sizeof(A) ? 3
                                                                   : 2;

// Elements [index, index + count) of a segment.
template <class A, bool plain, DType own, DType grads, bool extra, class Access, int count, class Scalars>
__device__ __forceinline__ void step_elements(const StepSegment& s, long long index, const Scalars& scalars,
                                              A average_weight, bool zero_grads) {
  const DType param_type = plain ? own : s.param_type;
  const DType grad_type = plain ? grads : s.grad_type;
  const DType state_type = plain ? own : s.state_type;
  const DType average_type = plain ? plain_average(own) : s.average_type;
  const int kept = state_count(scalars);
  const bool read = reads_states(scalars);
  const bool averaged = extra && s.average != nullptr;

  Access raw_param, raw_grad, raw_states[kMostStates], raw_average;
  raw_param.load(param_type, s.param, index);
  raw_grad.load(grad_type, s.grad, index);
#pragma unroll
  for (int i = 0; i < kMostStates; ++i)
    if (i < kept && read) raw_states[i].load(state_type, s.states[i], index);
  if (averaged) raw_average.load(average_type, s.average, index);

  A param[count], grad[count], states[kMostStates][count] = {};
  raw_param.convert(param_type, param);
  raw_grad.convert(grad_type, grad);
#pragma unroll
  for (int i = 0; i < kMostStates; ++i)
    if (i < kept && read) raw_states[i].convert(state_type, states[i]);
#pragma unroll
  for (int e = 0; e < count; ++e) {
    A of_element[kMostStates];
#pragma unroll
    for (int i = 0; i < kMostStates; ++i) of_element[i] = states[i][e];
    step_update<ScalarOps<A>>(scalars, param[e], grad[e], of_element);
#pragma unroll
    for (int i = 0; i < kMostStates; ++i) states[i][e] = of_element[i];
  }
  Access::store(param_type, s.param, index, param);
#pragma unroll
  for (int i = 0; i < kMostStates; ++i)
    if (i < kept) Access::store(state_type, s.states[i], index, states[i]);
  if constexpr (extra) {
    if (s.copy != nullptr) Access::store(s.copy_type, s.copy, index, param);
    if (averaged) {
      A average[count];
      raw_average.convert(average_type, average);
#pragma unroll
      for (int e = 0; e < count; ++e) {
        const bool exact = plain && item_size(own) == sizeof(A);
        const A stored = exact ? param[e] : as_stored(param_type, param[e]);
        average[e] = average_update<ScalarOps<A>>(average_weight, average[e], stored);
      }
      Access::store(average_type, s.average, index, average);
    }
    if (zero_grads) {
      const A zeros[count] = {};
      Access::store(grad_type, s.grad, index, zeros);
    }
  }
}

// The scalars of tensors that have made so many steps.
template <class A, class Options>
__device__ __forceinline__ typename Options::template Scalars<A> current_scalars(
    const StepTable<Options, A>& table, float made) {
  if (!table.dynamic) return table.scalars;
  Options options = table.options;
  options.lr = or_else(table.lr, options.lr);
  options.multiplier = or_else(table.multiplier, options.multiplier);
  return step_scalars<A>(options, table.steps == nullptr ? table.step : made + 1.0);
}

// If `plain`, all that is read is of the type `own`, but gradients are `grads` and averages not narrow; if
// not `extra`, scalars are known, there is neither an average nor a copy, and gradients stay.
template <class Options, class A, bool plain, DType own, DType grads, bool extra>
__global__ void __launch_bounds__(kThreads, kStepBlocks<A, plain, own>)
    step_kernel(const __grid_constant__ StepTable<Options, A> table) {
  using Scalars = typename Options::template Scalars<A>;
  constexpr int count = kStepCount<own>;
  __shared__ Scalars shared;  // what is in registers here is wanting there
  const Scalars& scalars = extra ? shared : table.scalars;
  const bool skip = extra && or_else(table.found_inf, 0.0) != 0.0;
  const bool zero_grads = extra && table.extras.zero_grads;
  const A average_weight =
      extra ? static_cast<A>(or_else(table.average_weight, table.extras.average_weight)) : A(0);
  float known = -1;  // the number of steps made that scalars are for
  int place = 0;
  for (long long chunk = blockIdx.x; chunk < table.chunks.total(); chunk += gridDim.x) {
    // Chunks of one block come in order.
    while (table.chunks.chunk_end[place] <= chunk) ++place;
    const StepSegment& s = table.segments[place];
    const long long numel = table.chunks.numel[place];
    const long long start = (chunk - table.chunks.chunk_begin(place)) * kThreads * count;
    const long long end = start + kThreads * count < numel ? start + kThreads * count : numel;
    if constexpr (extra) {
      if (skip) {
        if (!zero_grads) break;
        for (long long index = start + threadIdx.x; index < end; index += kThreads)
          store_scalar<A>(plain ? grads : s.grad_type, s.grad, index, A(0));
        continue;
      }
      const float made = table.steps == nullptr ? 0.0f : table.steps[table.place[place]];
      if (made != known) {  // the same in all threads
        __syncthreads();    // the former scalars have been read
        if (threadIdx.x == 0) shared = current_scalars<A>(table, made);
        __syncthreads();
        known = made;
      }
    }
    // Doubles among other types, which are rare, go one by one: several would pass through local memory.
    if constexpr (plain || sizeof(A) == 4) {
      if (table.chunks.aligned[place] && start + kThreads * count <= numel) {
        step_elements<A, plain, own, grads, extra, Elements<count>, count>(
            s, start + static_cast<long long>(threadIdx.x) * count, scalars, average_weight, zero_grads);
        continue;
      }
    }
    for (long long index = start + threadIdx.x; index < end; index += kThreads)
      step_elements<A, plain, own, grads, extra, Element, 1>(s, index, scalars, average_weight, zero_grads);
  }
  if (!extra || table.steps == nullptr || skip) return;
  // The last block to come here counts the step: all of them have read the numbers by then.
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) last = take_ticket(table.tickets);
  __syncthreads();
  if (!last) return;
  for (int i = threadIdx.x; i < table.chunks.segments; i += kThreads) table.steps[table.place[i]] += 1;
}

}  // namespace ratfast::cuda
