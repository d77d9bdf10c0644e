// Element-wise reductions over the models of a pool in host memory.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "leaf.h"
#include "parallel.h"

namespace ratfast {

// Here, since the CUDA library is not linked with the loops of the CPU.
inline std::optional<CombineKind> combine_kind_named(const std::string& name) {
  if (name == "min") return CombineKind::min;
  if (name == "max") return CombineKind::max;
  if (name == "geometric") return CombineKind::geometric;
  if (name == "fisher") return CombineKind::fisher;
  if (name == "sum") return CombineKind::sum;
  if (name == "elect") return CombineKind::elect;
  return std::nullopt;
}

// See combine_formula.h. An output may be the memory of a source or of the base of its segment. Returns
// whether all that was written is finite.
bool combine(const std::vector<CombineSegment>& segments, const CombineOptions& options,
             const ParallelFor& parallel_for);

}  // namespace ratfast
