// The kernel of adam, and the table that describes its work.
#pragma once

#include "device.cuh"

namespace ratfast::cuda {

template <class A>
struct AdamTable {
  static constexpr int kSegments = 256;
  Chunks<kSegments> chunks;
  AdamScalars<A> scalars;
  AdamSegment segments[kSegments];
};
static_assert(sizeof(AdamTable<double>) <= 32764);

constexpr int kAdamCount = 4;  // elements per thread

// If `plain`, all tensors are of the type that the arithmetic runs in.
template <class A, bool plain>
__global__ void __launch_bounds__(kThreads) adam_kernel(const __grid_constant__ AdamTable<A> table) {
  constexpr int count = kAdamCount;
  const bool amsgrad = table.scalars.amsgrad;
  for (long long chunk = blockIdx.x; chunk < table.chunks.total(); chunk += gridDim.x) {
    const int place = table.chunks.find(chunk);
    const AdamSegment& s = table.segments[place];
    constexpr DType own = sizeof(A) == 8 ? DType::f64 : DType::f32;
    const DType param_type = plain ? own : s.param_type;
    const DType grad_type = plain ? own : s.grad_type;
    const DType state_type = plain ? own : s.state_type;
    const long long numel = table.chunks.numel[place];
    const long long start = (chunk - table.chunks.chunk_begin(place)) * kThreads * count;

    if (table.chunks.aligned[place] && start + kThreads * count <= numel) {
      const long long index = start + static_cast<long long>(threadIdx.x) * count;
      Elements<count> raw_param, raw_grad, raw_exp_avg, raw_exp_avg_sq, raw_largest;
      raw_param.load(param_type, s.param, index);
      raw_grad.load(grad_type, s.grad, index);
      raw_exp_avg.load(state_type, s.exp_avg, index);
      raw_exp_avg_sq.load(state_type, s.exp_avg_sq, index);
      if (amsgrad) raw_largest.load(state_type, s.max_exp_avg_sq, index);
      A param[count], grad[count], exp_avg[count], exp_avg_sq[count], largest[count] = {};
      raw_param.convert(param_type, param);
      raw_grad.convert(grad_type, grad);
      raw_exp_avg.convert(state_type, exp_avg);
      raw_exp_avg_sq.convert(state_type, exp_avg_sq);
      if (amsgrad) raw_largest.convert(state_type, largest);
#pragma unroll
      for (int i = 0; i < count; ++i)
        adam_update<ScalarOps<A>>(table.scalars, param[i], grad[i], exp_avg[i], exp_avg_sq[i], largest[i]);
      Elements<count>::store(param_type, s.param, index, param);
      Elements<count>::store(state_type, s.exp_avg, index, exp_avg);
      Elements<count>::store(state_type, s.exp_avg_sq, index, exp_avg_sq);
      if (amsgrad) Elements<count>::store(state_type, s.max_exp_avg_sq, index, largest);
      continue;
    }

    const long long end = start + kThreads * count < numel ? start + kThreads * count : numel;
    for (long long index = start + threadIdx.x; index < end; index += kThreads) {
      A param = load_scalar<A>(param_type, s.param, index);
      A exp_avg = load_scalar<A>(state_type, s.exp_avg, index);
      A exp_avg_sq = load_scalar<A>(state_type, s.exp_avg_sq, index);
      A largest = amsgrad ? load_scalar<A>(state_type, s.max_exp_avg_sq, index) : A(0);
      const A grad = load_scalar<A>(grad_type, s.grad, index);
      adam_update<ScalarOps<A>>(table.scalars, param, grad, exp_avg, exp_avg_sq, largest);
      store_scalar<A>(param_type, s.param, index, param);
      store_scalar<A>(state_type, s.exp_avg, index, exp_avg);
      store_scalar<A>(state_type, s.exp_avg_sq, index, exp_avg_sq);
      if (amsgrad) store_scalar<A>(state_type, s.max_exp_avg_sq, index, largest);
    }
  }
}

}  // namespace ratfast::cuda
