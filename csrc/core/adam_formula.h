// Adam (arXiv 1412.6980), AMSGrad (1904.09237) and AdamW (1711.05101): the arithmetic of one step, once, for
// host vectors and for device scalars. The formulas are torch.optim's.
#pragma once

#include <cmath>

#include "dtype.h"

namespace ratfast {

struct AdamOptions {
  double lr;
  double beta1;
  double beta2;
  double weight_decay;
  double eps;
  bool decoupled;
  bool amsgrad;
  bool maximize;
};

// What the step number and the options come down to: numbers of the type that the arithmetic runs in.
template <class A>
struct AdamScalars {
  A keep;  // 1 - lr * weight_decay if decoupled, else 1
  A l2;    // weight_decay unless decoupled, else 0
  A sign;  // -1 to ascend
  A beta1;
  A one_minus_beta1;
  A beta2;
  A one_minus_beta2;
  A root_scale;  // 1 / sqrt(1 - beta2^step)
  A eps;
  A minus_step;  // -lr / (1 - beta1^step)
  bool amsgrad;
};

template <class A>
inline AdamScalars<A> adam_scalars(const AdamOptions& o, double step) {
  AdamScalars<A> s;
  s.keep = static_cast<A>(o.decoupled ? 1.0 - o.lr * o.weight_decay : 1.0);
  s.l2 = static_cast<A>(o.decoupled ? 0.0 : o.weight_decay);
  s.sign = static_cast<A>(o.maximize ? -1.0 : 1.0);
  s.beta1 = static_cast<A>(o.beta1);
  s.one_minus_beta1 = static_cast<A>(1.0 - o.beta1);
  s.beta2 = static_cast<A>(o.beta2);
  s.one_minus_beta2 = static_cast<A>(1.0 - o.beta2);
  s.root_scale = static_cast<A>(1.0 / std::sqrt(1.0 - std::pow(o.beta2, step)));
  s.eps = static_cast<A>(o.eps);
  s.minus_step = static_cast<A>(-o.lr / (1.0 - std::pow(o.beta1, step)));
  s.amsgrad = o.amsgrad;
  return s;
}

// V is a vector or a scalar with madd(a, b, c) = a * b + c, mul, div, square_root, maximum (which keeps NaN)
// and V::all(number), found as static members of Ops.
template <class Ops, class V, class A>
RATFAST_HD void adam_update(const AdamScalars<A>& s, V& param, V grad, V& exp_avg, V& exp_avg_sq,
                            V& largest) {
  grad = Ops::mul(grad, Ops::all(s.sign));
  if (s.l2 != A(0)) grad = Ops::madd(param, Ops::all(s.l2), grad);
  param = Ops::mul(param, Ops::all(s.keep));
  exp_avg = Ops::madd(grad, Ops::all(s.one_minus_beta1), Ops::mul(exp_avg, Ops::all(s.beta1)));
  const V scaled = Ops::mul(grad, Ops::all(s.one_minus_beta2));
  exp_avg_sq = Ops::madd(scaled, grad, Ops::mul(exp_avg_sq, Ops::all(s.beta2)));
  V second = exp_avg_sq;
  if (s.amsgrad) second = largest = Ops::maximum(largest, exp_avg_sq);
  const V denominator = Ops::madd(Ops::square_root(second), Ops::all(s.root_scale), Ops::all(s.eps));
  param = Ops::madd(Ops::div(exp_avg, denominator), Ops::all(s.minus_step), param);
}

}  // namespace ratfast
