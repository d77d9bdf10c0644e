// What optimizer steps have in common: the tensors of one step, and what is done with them besides, for host
// vectors and for device scalars.
#pragma once

#include "dtype.h"

namespace ratfast {

inline constexpr int kMostStates = 3;

// A parameter and what belongs to it, numel elements each, at any alignment.
struct StepSegment {
  std::int64_t numel;
  void* param;
  void* grad;                 // written only to be zeroed
  void* states[kMostStates];  // null where the rule has none
  void* average;              // or null
  void* copy;                 // or null
  DType param_type;
  DType grad_type;
  DType state_type;
  DType average_type;
  DType copy_type;
};

// Whether the arithmetic of a segment runs in double rather than in float.
RATFAST_HD bool is_wide(const StepSegment& s) {
  return s.param_type == DType::f64 || s.grad_type == DType::f64 ||
         (s.states[0] != nullptr && s.state_type == DType::f64) ||
         (s.average != nullptr && s.average_type == DType::f64) ||
         (s.copy != nullptr && s.copy_type == DType::f64);
}

// The type of averages of plain segments: not narrow, since small steps would round away.
RATFAST_HD constexpr DType plain_average(DType own) { return item_size(own) == 2 ? DType::f32 : own; }

// Whether all that is read is of type `own`, but gradients are `grads`, and averages as above.
RATFAST_HD bool is_plain(const StepSegment& s, DType own, DType grads) {
  return s.param_type == own && s.grad_type == grads && (s.states[0] == nullptr || s.state_type == own) &&
         (s.average == nullptr || s.average_type == plain_average(own));
}

struct StepExtras {
  double average_weight;
  bool zero_grads;
};

// A moving average, or the mean of n + 1 values with a weight of 1 / (n + 1): the formula of torch.lerp,
// which is exact at both ends. Subtraction is a product with -1, which rounds once as well.
template <class Ops, class V, class A>
RATFAST_HD V average_update(A weight, V average, V value) {
  if (weight == A(1)) return value;  // no trace of what was not finite
  const V difference = Ops::madd(average, Ops::all(A(-1)), value);
  const bool small = weight < A(0.5) && weight > A(-0.5);
  return Ops::madd(difference, Ops::all(small ? weight : weight - A(1)), small ? average : value);
}

}  // namespace ratfast
