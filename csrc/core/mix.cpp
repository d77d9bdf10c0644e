#include "mix.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "capability.h"

namespace ratfast {
namespace {

// Outputs of fewer bytes in all are likely to be read again while a cache still holds them.
constexpr std::int64_t kStreamFrom = std::int64_t{8} << 20;
// Elements read or written that are worth a thread's start.
constexpr std::int64_t kGrain = std::int64_t{1} << 17;

bool is_source(const MixSegment& segment, const void* output, int sources) {
  return std::find(segment.sources, segment.sources + sources, output) != segment.sources + sources;
}

}  // namespace

bool mix(const std::vector<MixSegment>& segments, int outputs, int sources, const double* weights,
         const ParallelFor& parallel_for) {
  Concatenation elements;
  std::int64_t output_bytes = 0;
  for (const auto& segment : segments) {
    elements.add(segment.numel);
    for (int k = 0; k < outputs; ++k) output_bytes += segment.numel * item_size(segment.output_types[k]);
  }
  // (segments, outputs)
  const auto stream = std::make_unique<bool[]>(segments.size() * static_cast<std::size_t>(outputs));
  bool* next = stream.get();
  for (const auto& segment : segments)
    for (int k = 0; k < outputs; ++k)
      *next++ = output_bytes >= kStreamFrom && !is_source(segment, segment.outputs[k], sources);
  std::vector<double> transposed;
  for (int n = 0; n < sources; ++n)
    for (int k = 0; k < outputs; ++k)
      transposed.push_back(weights[static_cast<std::size_t>(k) * sources + n]);
  const Leaf& loops = leaf();
  std::atomic<bool> finite{true};

  parallel_for(
      elements.total(), std::max<std::int64_t>(1024, kGrain / (sources + outputs)),
      [&](std::int64_t from, std::int64_t until) {
        struct alignas(64) Line {
          double values[8];
        };
        std::vector<Line> scratch(static_cast<std::size_t>(sources + outputs) * kLongestStep / 8);
        elements.visit(from, until, [&](std::size_t t, std::int64_t begin, std::int64_t end) {
          if (!loops.mix(segments[t], begin, end,
                         {transposed.data(), outputs, sources, scratch.empty() ? nullptr : scratch[0].values,
                          stream.get() + t * static_cast<std::size_t>(outputs), few_streams()}))
            finite.store(false, std::memory_order_relaxed);
        });
      });
  return finite;
}

}  // namespace ratfast
