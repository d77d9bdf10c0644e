// The reductions over the columns of a pool, once for host and device code: for one element of every model,
// or for a vector of them. Ops::T is a double or a vector of doubles; comparisons of it choose with `?:`,
// lane by lane. Ops names the exactly rounded operations, so that no compiler contracts them: mul, add, sub,
// div (by a double too), and all, log, exp, magnitude and below.
#pragma once

#include <cmath>

#include "philox.h"

namespace ratfast {

enum class CombineKind : std::uint8_t { min, max, geometric, fisher, sum, elect };

// The models are added in order; see CombineOptions for what is computed.
template <class Ops>
struct CombineState {
  using T = typename Ops::T;
  T total;     // the sum that decides or is divided
  T positive;  // elect: sums over the models above the base ...
  T negative;  // ... and below
  T positive_weight;
  T negative_weight;
};

// Whether a kind works with the differences from a base.
RATFAST_HD constexpr bool of_differences(CombineKind kind) {
  return kind == CombineKind::sum || kind == CombineKind::elect;
}

template <class Ops>
RATFAST_HD CombineState<Ops> combine_begin(CombineKind kind) {
  const double infinity = bits_of<double>(std::uint64_t{0x7ff0000000000000});
  const auto zero = Ops::all(0);
  return {Ops::all(kind == CombineKind::min   ? infinity
                   : kind == CombineKind::max ? -infinity
                                              : 0.0),
          zero, zero, zero, zero};
}

// The least double that does not become a float below `threshold`: |float(x)| < threshold just where
// |x| < trimming_limit(threshold). Halfway between two floats, the even one is taken.
RATFAST_HD double trimming_limit(float threshold) {
  if (!(threshold > 0)) return threshold;  // nothing is below it, or NaN
  const auto bits = bits_of<std::uint32_t>(threshold);
  const double top = bits >= 0x7f800000u ? 0x1p128 : static_cast<double>(threshold);
  const double halfway = (static_cast<double>(bits_of<float>(bits - 1)) + top) / 2;
  return (bits & 1) == 0 ? halfway : bits_of<double>(bits_of<std::uint64_t>(halfway) + 1);
}

// The difference of an element from its base, 0 below the threshold (as a float).
template <class Ops>
RATFAST_HD typename Ops::T combine_trim(typename Ops::T difference, typename Ops::Threshold threshold) {
  return Ops::below(difference, threshold) ? Ops::all(0) : difference;
}

// A difference kept at random, and scaled by 1 / density, or 0. `words` are 32 random bits each.
template <class Ops>
RATFAST_HD typename Ops::T combine_thin(typename Ops::T difference, typename Ops::T words, double density) {
  return words < density * 0x1p32 ? Ops::div(difference, density) : Ops::all(0);
}

// Adds a model: `value` is its element, or, for sum and elect, what is left of its difference; `fisher` its
// entry of Fisher's information, for the kind of that name.
template <class Ops>
RATFAST_HD void combine_add(CombineKind kind, CombineState<Ops>& state, typename Ops::T value,
                            typename Ops::T fisher, double model_weight) {
  using T = typename Ops::T;
  const T weight = Ops::all(model_weight), weighted = Ops::mul(weight, value);
  switch (kind) {
    case CombineKind::min:
      state.total = (value < state.total) | (value != value) ? value : state.total;
      break;
    case CombineKind::max:
      state.total = (value > state.total) | (value != value) ? value : state.total;
      break;
    case CombineKind::geometric: {
      // -inf of a zero stays, whatever is added to it later; the sign comes from the plain sum.
      const T next = Ops::add(state.positive, Ops::mul(weight, Ops::log(Ops::magnitude(value))));
      state.negative_weight = value == 0.0 ? Ops::all(1) : state.negative_weight;
      state.positive = value == 0.0 ? state.positive : next;
      state.total = Ops::add(state.total, weighted);
      break;
    }
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
      state.positive = value > 0.0 ? Ops::add(state.positive, weighted) : state.positive;
      state.positive_weight = value > 0.0 ? Ops::add(state.positive_weight, weight) : state.positive_weight;
      state.negative = value < 0.0 ? Ops::add(state.negative, weighted) : state.negative;
      state.negative_weight = value < 0.0 ? Ops::add(state.negative_weight, weight) : state.negative_weight;
  }
}

template <class Ops>
RATFAST_HD typename Ops::T combine_finish(CombineKind kind, const CombineState<Ops>& state,
                                          typename Ops::T base, double scale, bool normalize) {
  using T = typename Ops::T;
  switch (kind) {
    case CombineKind::geometric: {
      const T size = Ops::exp(state.positive);
      const T result = state.total < 0.0   ? Ops::sub(Ops::all(0), size)
                       : state.total > 0.0 ? size
                                           : Ops::mul(state.total, size);
      return (state.negative_weight != 0.0) & (state.positive == state.positive) ? Ops::all(0) : result;
    }
    case CombineKind::fisher: {
      const auto uninformed = state.positive_weight == 0.0;
      return Ops::div(uninformed ? state.negative : state.total,
                      uninformed ? state.negative_weight : state.positive_weight);
    }
    case CombineKind::sum:
      return Ops::add(base, Ops::mul(Ops::all(scale), state.total));
    case CombineKind::elect: {
      const auto above = state.total > 0.0;
      T elected = above ? state.positive : state.negative;
      if (normalize) elected = Ops::div(elected, above ? state.positive_weight : state.negative_weight);
      const T result = Ops::add(base, Ops::mul(Ops::all(scale), elected));
      return state.total == 0.0 ? base : state.total != state.total ? state.total : result;
    }
    default:
      return state.total;
  }
}

}  // namespace ratfast
