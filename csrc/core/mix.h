// K weighted sums of N models over tensors in host memory.
#pragma once

#include <vector>

#include "leaf.h"
#include "parallel.h"

namespace ratfast {

// outputs[k][t] = sum over n of weights[k * sources + n] * sources[n][t], models added in order, so that the
// result depends neither on the threads nor on how the tensors are divided among them. Sums are held in
// float, or in double where a tensor of the segment is double. An output may be the memory of a source of its
// segment.
void mix(const std::vector<MixSegment>& segments, int outputs, int sources, const double* weights,
         const ParallelFor& parallel_for);

}  // namespace ratfast
