// One step of Adam over tensors in host memory.
#pragma once

#include <vector>

#include "leaf.h"
#include "parallel.h"

namespace ratfast {

// steps[i] is the number of this step for segments[i], 1 for the first. The arithmetic runs in float, or in
// double where a tensor of the segment is double.
void adam(const std::vector<AdamSegment>& segments, const float* steps, const AdamOptions& options,
          const ParallelFor& parallel_for);

}  // namespace ratfast
