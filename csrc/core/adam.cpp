#include "adam.h"

#include "capability.h"

namespace ratfast {
namespace {

constexpr std::int64_t kGrain = std::int64_t{1} << 14;

}  // namespace

void adam(const std::vector<AdamSegment>& segments, const float* steps, const AdamOptions& options,
          const ParallelFor& parallel_for) {
  Concatenation elements;
  std::vector<AdamScalars<double>> wide;
  std::vector<AdamScalars<float>> narrow;
  for (std::size_t t = 0; t < segments.size(); ++t) {
    elements.add(segments[t].numel);
    // Tensors usually share a step number.
    if (t > 0 && steps[t] == steps[t - 1]) {
      wide.push_back(wide.back());
      narrow.push_back(narrow.back());
    } else {
      wide.push_back(adam_scalars<double>(options, steps[t]));
      narrow.push_back(adam_scalars<float>(options, steps[t]));
    }
  }
  const Leaf& loops = leaf();
  parallel_for(elements.total(), kGrain, [&](std::int64_t from, std::int64_t until) {
    elements.visit(from, until, [&](std::size_t t, std::int64_t begin, std::int64_t end) {
      const AdamSegment& s = segments[t];
      if (s.param_type == DType::f64 || s.grad_type == DType::f64 || s.state_type == DType::f64)
        loops.adam_f64(s, begin, end, wide[t]);
      else
        loops.adam_f32(s, begin, end, narrow[t]);
    });
  });
}

}  // namespace ratfast
