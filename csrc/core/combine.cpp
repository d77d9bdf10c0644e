#include "combine.h"

#include <algorithm>
#include <atomic>

#include "capability.h"

namespace ratfast {
namespace {

// Elements read that are worth a thread's start.
constexpr std::int64_t kGrain = std::int64_t{1} << 16;

}  // namespace

bool combine(const std::vector<CombineSegment>& given_segments, const CombineOptions& options,
             const ParallelFor& parallel_for) {
  std::vector<CombineSegment> segments = given_segments;
  Concatenation elements;
  std::vector<double> limits;
  limits.reserve(segments.size() * static_cast<std::size_t>(options.models));  // stays where it is
  for (auto& segment : segments) {
    elements.add(segment.numel);
    if (segment.thresholds == nullptr) continue;
    segment.limits = limits.data() + limits.size();
    for (int n = 0; n < options.models; ++n) limits.push_back(trimming_limit(segment.thresholds[n]));
  }
  const Leaf& loops = leaf();
  std::atomic<bool> finite{true};
  parallel_for(elements.total(), std::max<std::int64_t>(1024, kGrain / options.models),
               [&](std::int64_t from, std::int64_t until) {
                 elements.visit(from, until, [&](std::size_t t, std::int64_t begin, std::int64_t end) {
                   if (!loops.combine(segments[t], begin, end, options))
                     finite.store(false, std::memory_order_relaxed);
                 });
               });
  return finite;
}

}  // namespace ratfast
