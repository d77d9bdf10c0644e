// Adam (arXiv 1412.6980), AMSGrad (1904.09237) and AdamW (1711.05101): the arithmetic of one step, once, for
// host vectors and for device scalars. The formulas are torch.optim's.
#pragma once

#include <cmath>

#include "dtype.h"

namespace ratfast {

// What the step number and the options come down to: numbers of the type that the arithmetic runs in.
template <class A>
struct AdamScalars {
  A factor;  // of the gradient
  A keep;    // 1 - lr * weight_decay if decoupled, else 1
  A l2;      // weight_decay unless decoupled, else 0
  A beta1;
  A one_minus_beta1;
  A beta2;
  A one_minus_beta2;
  A root_scale;  // 1 / sqrt(1 - beta2^step)
  A eps;
  A minus_step;  // -lr / (1 - beta1^step)
  bool amsgrad;
};

struct AdamOptions {
  template <class A>
  using Scalars = AdamScalars<A>;

  double lr;
  double multiplier;  // of gradients
  double beta1;
  double beta2;
  double weight_decay;
  double eps;
  bool decoupled;
  bool amsgrad;
  bool maximize;
};

// base to the power of a step number. By squaring: a device's pow is a call, around which registers are
// spilled. The error of about `step` units matters nowhere, since where there are many steps the power is
// small.
RATFAST_HD double power(double base, double step) {
  double result = 1;
  for (auto left = static_cast<std::int64_t>(step); left > 0; left /= 2, base *= base)
    if (left % 2 == 1) result *= base;
  return result;
}

// `step` is the number of this step, 1 for the first.
template <class A>
RATFAST_HD AdamScalars<A> step_scalars(const AdamOptions& o, double step) {
  AdamScalars<A> s;
  s.factor = static_cast<A>(o.maximize ? -o.multiplier : o.multiplier);
  s.keep = static_cast<A>(o.decoupled ? 1.0 - o.lr * o.weight_decay : 1.0);
  s.l2 = static_cast<A>(o.decoupled ? 0.0 : o.weight_decay);
  s.beta1 = static_cast<A>(o.beta1);
  s.one_minus_beta1 = static_cast<A>(1.0 - o.beta1);
  s.beta2 = static_cast<A>(o.beta2);
  s.one_minus_beta2 = static_cast<A>(1.0 - o.beta2);
  s.root_scale = static_cast<A>(1.0 / sqrt(1.0 - power(o.beta2, step)));
  s.eps = static_cast<A>(o.eps);
  s.minus_step = static_cast<A>(-o.lr / (1.0 - power(o.beta1, step)));
  s.amsgrad = o.amsgrad;
  return s;
}

// How many states there are: first moment, second moment, largest second moment.
template <class A>
RATFAST_HD int state_count(const AdamScalars<A>& s) {
  return s.amsgrad ? 3 : 2;
}

// Whether the states are read, not only written.
template <class A>
RATFAST_HD bool reads_states(const AdamScalars<A>&) {
  return true;
}

// V is a vector or a scalar with madd(a, b, c) = a * b + c, mul, div, square_root, maximum (which keeps NaN)
// and V::all(number), found as static members of Ops.
template <class Ops, class V, class A>
RATFAST_HD void step_update(const AdamScalars<A>& s, V& param, V grad, V* states) {
  grad = Ops::mul(grad, Ops::all(s.factor));
  if (s.l2 != A(0)) grad = Ops::madd(param, Ops::all(s.l2), grad);
  param = Ops::mul(param, Ops::all(s.keep));
  states[0] = Ops::madd(grad, Ops::all(s.one_minus_beta1), Ops::mul(states[0], Ops::all(s.beta1)));
  const V scaled = Ops::mul(grad, Ops::all(s.one_minus_beta2));
  states[1] = Ops::madd(scaled, grad, Ops::mul(states[1], Ops::all(s.beta2)));
  V second = states[1];
  if (s.amsgrad) second = states[2] = Ops::maximum(states[2], states[1]);
  const V denominator = Ops::madd(Ops::square_root(second), Ops::all(s.root_scale), Ops::all(s.eps));
  param = Ops::madd(Ops::div(states[0], denominator), Ops::all(s.minus_step), param);
}

}  // namespace ratfast
