// The reductions over the columns of a pool, once for host and device code. Ops names the exactly rounded
// operations on doubles, so that no compiler contracts them: mul, add, sub and div.
#pragma once

#include <cmath>

#include "philox.h"

namespace ratfast {

enum class CombineKind : std::uint8_t { min, max, geometric, fisher, sum, elect };

// One element of one tensor, the models of which are added in order; see CombineOptions for what is computed.
struct CombineState {
  double total;     // the sum that decides or is divided
  double positive;  // elect: sums over the models above the base ...
  double negative;  // ... and below
  double positive_weight;
  double negative_weight;
};

// Whether a kind works with the differences from a base.
RATFAST_HD constexpr bool of_differences(CombineKind kind) {
  return kind == CombineKind::sum || kind == CombineKind::elect;
}

RATFAST_HD CombineState combine_begin(CombineKind kind) {
  const double infinity = bits_of<double>(std::uint64_t{0x7ff0000000000000});
  return {kind == CombineKind::min ? infinity : kind == CombineKind::max ? -infinity : 0.0, 0, 0, 0, 0};
}

// The difference of an element from its base, trimmed (below the threshold, as a float) and, where density <
// 1, dropped unless the draw u < density, else scaled by 1 / density.
template <class Ops>
RATFAST_HD double combine_drop(double difference, float threshold, double density, double u) {
  const float single = static_cast<float>(difference);
  if ((single < 0 ? -single : single) < threshold) return 0;
  if (density < 1) return u < density ? Ops::div(difference, density) : 0;
  return difference;
}

// Adds a model: `value` is its element, or, for sum and elect, the difference that combine_drop left of it;
// `fisher` its entry of Fisher's information, for the kind of that name.
template <class Ops>
RATFAST_HD void combine_add(CombineKind kind, CombineState& state, double value, double fisher,
                            double weight) {
  const double weighted = Ops::mul(weight, value);
  switch (kind) {
    case CombineKind::min:
      if (value < state.total || value != value) state.total = value;
      break;
    case CombineKind::max:
      if (value > state.total || value != value) state.total = value;
      break;
    case CombineKind::geometric:
      // -inf of a zero stays, whatever is added to it later; the sign comes from the plain sum.
      if (value == 0)
        state.negative_weight = 1;
      else
        state.positive = Ops::add(state.positive, Ops::mul(weight, log(fabs(value))));
      state.total = Ops::add(state.total, weighted);
      break;
    case CombineKind::fisher:
      // Where no model has information, the plain weighted mean.
      state.total = Ops::add(state.total, Ops::mul(Ops::mul(weight, fisher), value));
      state.positive_weight = Ops::add(state.positive_weight, Ops::mul(weight, fisher));
      state.negative = Ops::add(state.negative, weighted);
      state.negative_weight = Ops::add(state.negative_weight, weight);
      break;
    case CombineKind::sum:
      state.total = Ops::add(state.total, weighted);
      break;
    case CombineKind::elect:
      state.total = Ops::add(state.total, weighted);
      if (value > 0) {
        state.positive = Ops::add(state.positive, weighted);
        state.positive_weight = Ops::add(state.positive_weight, weight);
      } else if (value < 0) {
        state.negative = Ops::add(state.negative, weighted);
        state.negative_weight = Ops::add(state.negative_weight, weight);
      }
  }
}

template <class Ops>
RATFAST_HD double combine_finish(CombineKind kind, const CombineState& state, double base, double scale,
                                 bool normalize) {
  switch (kind) {
    case CombineKind::geometric: {
      if (state.negative_weight != 0 && state.positive == state.positive) return 0;
      const double magnitude = exp(state.positive);
      return state.total < 0 ? -magnitude : state.total > 0 ? magnitude : Ops::mul(state.total, magnitude);
    }
    case CombineKind::fisher:
      if (state.positive_weight == 0) return Ops::div(state.negative, state.negative_weight);
      return Ops::div(state.total, state.positive_weight);
    case CombineKind::sum:
      return Ops::add(base, Ops::mul(scale, state.total));
    case CombineKind::elect: {
      if (state.total == 0) return base;
      if (state.total != state.total) return state.total;
      double elected = state.total > 0 ? state.positive : state.negative;
      if (normalize)
        elected = Ops::div(elected, state.total > 0 ? state.positive_weight : state.negative_weight);
      return Ops::add(base, Ops::mul(scale, elected));
    }
    default:
      return state.total;
  }
}

}  // namespace ratfast
