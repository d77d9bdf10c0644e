#include "step.h"

#include <algorithm>
#include <cstring>

#include "capability.h"

namespace ratfast {
namespace {

constexpr std::int64_t kGrain = std::int64_t{1} << 14;

void run(const Leaf& loops, const StepSegment& s, std::int64_t begin, std::int64_t end,
         const AdamScalars<float>& narrow, const AdamScalars<double>& wide, const StepExtras& extras) {
  is_wide(s) ? loops.adam_f64(s, begin, end, wide, extras) : loops.adam_f32(s, begin, end, narrow, extras);
}

void run(const Leaf& loops, const StepSegment& s, std::int64_t begin, std::int64_t end,
         const SgdScalars<float>& narrow, const SgdScalars<double>& wide, const StepExtras& extras) {
  is_wide(s) ? loops.sgd_f64(s, begin, end, wide, extras) : loops.sgd_f32(s, begin, end, narrow, extras);
}

template <class Options>
void step(const std::vector<StepSegment>& segments, float* steps, const Options& options,
          const StepExtras& extras, const ParallelFor& parallel_for) {
  Concatenation elements;
  std::vector<typename Options::template Scalars<double>> wide;
  std::vector<typename Options::template Scalars<float>> narrow;
  for (std::size_t t = 0; t < segments.size(); ++t) {
    elements.add(segments[t].numel);
    steps[t] += 1;
    // Tensors usually share a step number.
    if (t > 0 && steps[t] == steps[t - 1]) {
      wide.push_back(wide.back());
      narrow.push_back(narrow.back());
    } else {
      wide.push_back(step_scalars<double>(options, steps[t]));
      narrow.push_back(step_scalars<float>(options, steps[t]));
    }
  }
  const Leaf& loops = leaf();
  parallel_for(elements.total(), kGrain, [&](std::int64_t from, std::int64_t until) {
    elements.visit(from, until, [&](std::size_t t, std::int64_t begin, std::int64_t end) {
      run(loops, segments[t], begin, end, narrow[t], wide[t], extras);
    });
  });
}

}  // namespace

void adam(const std::vector<StepSegment>& segments, float* steps, const AdamOptions& options,
          const StepExtras& extras, const ParallelFor& parallel_for) {
  step(segments, steps, options, extras, parallel_for);
}

void sgd(const std::vector<StepSegment>& segments, float* steps, const SgdOptions& options,
         const StepExtras& extras, const ParallelFor& parallel_for) {
  step(segments, steps, options, extras, parallel_for);
}

void zero_grads(const std::vector<StepSegment>& segments, const ParallelFor& parallel_for) {
  Concatenation elements;
  for (const StepSegment& segment : segments) elements.add(segment.numel);
  parallel_for(elements.total(), kGrain, [&](std::int64_t from, std::int64_t until) {
    elements.visit(from, until, [&](std::size_t t, std::int64_t begin, std::int64_t end) {
      const std::int64_t size = item_size(segments[t].grad_type);
      std::memset(static_cast<char*>(segments[t].grad) + begin * size, 0,
                  static_cast<std::size_t>((end - begin) * size));
    });
  });
}

}  // namespace ratfast
