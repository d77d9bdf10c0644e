// K weighted sums of N models over tensors in host memory.
#pragma once

#include <vector>

#include "leaf.h"
#include "parallel.h"

namespace ratfast {

// outputs[k][t] = sum over n of weights[k * sources + n] * sources[n][t], models added in order. Sums are
// held in double for every element type, multiplied and added apart, so that the result depends neither on
// the threads nor on the instruction set, nor on how the tensors are divided. An output may be the memory of
// a source of its segment. Returns whether all that was written is finite.
bool mix(const std::vector<MixSegment>& segments, int outputs, int sources, const double* weights,
         const ParallelFor& parallel_for);

}  // namespace ratfast
