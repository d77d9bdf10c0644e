// The k-th largest magnitude of tensors in host memory, without a copy of them.
#pragma once

#include <vector>

#include "leaf.h"
#include "parallel.h"

namespace ratfast {

// The count-th largest |float(source - base)| over all elements of the segments: infinity for a count of 0, 0
// for one of all elements or more. NaN ranks above everything.
float kth_magnitude(const std::vector<MagnitudeSegment>& segments, std::int64_t count,
                    const ParallelFor& parallel_for);

}  // namespace ratfast
