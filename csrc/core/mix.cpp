#include "mix.h"

#include <algorithm>

#include "capability.h"

namespace ratfast {
namespace {

// Outputs of fewer bytes in all are likely to be read again while a cache still holds them.
constexpr std::int64_t kStreamFrom = std::int64_t{8} << 20;
// Elements read or written that are worth a thread's start.
constexpr std::int64_t kGrain = std::int64_t{1} << 17;

bool is_wide(const MixSegment& segment, int outputs, int sources) {
  return std::any_of(segment.source_types, segment.source_types + sources,
                     [](DType type) { return type == DType::f64; }) ||
         std::any_of(segment.output_types, segment.output_types + outputs,
                     [](DType type) { return type == DType::f64; });
}

bool in_place(const MixSegment& segment, int outputs, int sources) {
  return std::any_of(segment.outputs, segment.outputs + outputs, [&](const void* output) {
    return std::find(segment.sources, segment.sources + sources, output) != segment.sources + sources;
  });
}

struct Plan {
  bool wide;
  bool stream;
};

}  // namespace

void mix(const std::vector<MixSegment>& segments, int outputs, int sources, const double* weights,
         const ParallelFor& parallel_for) {
  Concatenation elements;
  std::int64_t output_bytes = 0;
  for (const auto& segment : segments) {
    elements.add(segment.numel);
    for (int k = 0; k < outputs; ++k) output_bytes += segment.numel * item_size(segment.output_types[k]);
  }
  std::vector<Plan> plans;
  for (const auto& segment : segments)
    plans.push_back({is_wide(segment, outputs, sources),
                     output_bytes >= kStreamFrom && !in_place(segment, outputs, sources)});
  const std::vector<double> doubles(weights, weights + static_cast<std::size_t>(outputs) * sources);
  const std::vector<float> floats(doubles.begin(), doubles.end());
  const Leaf& loops = leaf();

  parallel_for(elements.total(), std::max<std::int64_t>(1024, kGrain / (sources + outputs)),
               [&](std::int64_t from, std::int64_t until) {
                 std::vector<double> scratch(static_cast<std::size_t>(outputs) * kLongestStep);
                 elements.visit(from, until, [&](std::size_t t, std::int64_t begin, std::int64_t end) {
                   if (plans[t].wide)
                     loops.mix_f64(segments[t], begin, end,
                                   {doubles.data(), outputs, sources, scratch.data(), plans[t].stream});
                   else
                     loops.mix_f32(segments[t], begin, end,
                                   {floats.data(), outputs, sources, reinterpret_cast<float*>(scratch.data()),
                                    plans[t].stream});
                 });
               });
}

}  // namespace ratfast
