// Stochastic gradient descent with momentum, and with Nesterov's: the arithmetic of one step, once, for host
// vectors and for device scalars. The formulas are torch.optim's.
#pragma once

#include "dtype.h"

namespace ratfast {

template <class A>
struct SgdScalars {
  A factor;  // of the gradient
  A l2;
  A momentum;
  A one_minus_dampening;
  A minus_step;
  bool buffered;  // there is momentum
  bool first;     // the buffer holds nothing yet
  bool nesterov;
};

struct SgdOptions {
  template <class A>
  using Scalars = SgdScalars<A>;

  double lr;
  double multiplier;  // of gradients
  double momentum;
  double dampening;
  double weight_decay;
  bool nesterov;
  bool maximize;
};

// `step` is the number of this step, 1 for the first.
template <class A>
RATFAST_HD SgdScalars<A> step_scalars(const SgdOptions& o, double step) {
  SgdScalars<A> s;
  s.factor = static_cast<A>(o.maximize ? -o.multiplier : o.multiplier);
  s.l2 = static_cast<A>(o.weight_decay);
  s.momentum = static_cast<A>(o.momentum);
  s.one_minus_dampening = static_cast<A>(1.0 - o.dampening);
  s.minus_step = static_cast<A>(-o.lr);
  s.buffered = o.momentum != 0.0;
  s.first = step == 1.0;
  s.nesterov = o.nesterov;
  return s;
}

// How many states there are: the momentum buffer, if any.
template <class A>
RATFAST_HD int state_count(const SgdScalars<A>& s) {
  return s.buffered ? 1 : 0;
}

// Whether the states are read, not only written.
template <class A>
RATFAST_HD bool reads_states(const SgdScalars<A>& s) {
  return !s.first;
}

// See adam_formula.h for V and Ops.
template <class Ops, class V, class A>
RATFAST_HD void step_update(const SgdScalars<A>& s, V& param, V grad, V* states) {
  grad = Ops::mul(grad, Ops::all(s.factor));
  if (s.l2 != A(0)) grad = Ops::madd(param, Ops::all(s.l2), grad);
  if (s.buffered) {
    const V scaled = Ops::mul(grad, Ops::all(s.one_minus_dampening));
    states[0] = s.first ? grad : Ops::madd(states[0], Ops::all(s.momentum), scaled);
    grad = s.nesterov ? Ops::madd(states[0], Ops::all(s.momentum), grad) : states[0];
  }
  param = Ops::madd(grad, Ops::all(s.minus_step), param);
}

}  // namespace ratfast
