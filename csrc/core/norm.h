// The norm of all gradients together, and the numbers that unscale and clip them.
#pragma once

#include <cmath>
#include <vector>

#include "leaf.h"
#include "parallel.h"

namespace ratfast {

struct NormSegment {
  std::int64_t numel;
  const void* data;
  DType type;
};

// Of all tensors together, in double, in an order that depends on the numbers of elements alone.
double square_sum(const std::vector<NormSegment>& segments, const ParallelFor& parallel_for);

// What unscales and clips gradients: the formula of torch.nn.utils.clip_grad_norm_.
struct Clipping {
  double norm;        // of the unscaled gradients
  double multiplier;  // of the gradients as they are
  bool finite;        // the norm
};

RATFAST_HD Clipping clipping(double square_sum, double grad_scale, double max_norm) {
  Clipping result;
  const double inverse = 1.0 / grad_scale;
  result.norm = sqrt(square_sum) * inverse;
  result.finite = result.norm - result.norm == 0.0;
  const bool unlimited = max_norm - max_norm != 0.0;
  const double factor = unlimited ? 1.0 : max_norm / (result.norm + 1e-6);
  result.multiplier = (factor > 1.0 ? 1.0 : factor) * inverse;
  return result;
}

}  // namespace ratfast
