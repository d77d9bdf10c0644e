// Inner products between the models of a pool in host memory.
#pragma once

#include <vector>

#include "leaf.h"
#include "parallel.h"

namespace ratfast {

// result (T, N, N): of each segment the products of every two models, held in double. The order of the sums
// depends on the tensor's size alone: parts of a fixed number of elements, eight lanes in each.
void gram(const std::vector<GramSegment>& segments, int sources, double* result,
          const ParallelFor& parallel_for);

}  // namespace ratfast
