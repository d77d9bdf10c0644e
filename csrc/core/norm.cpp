#include "norm.h"

#include <algorithm>

#include "capability.h"

namespace ratfast {
namespace {

// Elements whose squares are summed before they are added to those of the parts before.
constexpr std::int64_t kPart = std::int64_t{1} << 15;

struct Part {
  std::size_t segment;
  std::int64_t begin;
  std::int64_t end;
};

}  // namespace

double square_sum(const std::vector<NormSegment>& segments, const ParallelFor& parallel_for) {
  std::vector<Part> parts;
  // Small tensors next to each other make a piece of work together.
  std::vector<std::int64_t> ends;
  std::int64_t total = 0;
  for (std::size_t t = 0; t < segments.size(); ++t) {
    for (std::int64_t begin = 0; begin < segments[t].numel; begin += kPart) {
      parts.push_back({t, begin, std::min(segments[t].numel, begin + kPart)});
      total += parts.back().end - begin;
      ends.push_back(total);
    }
  }
  std::vector<double> sums(parts.size());
  const Leaf& loops = leaf();
  parallel_for(total, kPart, [&](std::int64_t from, std::int64_t until) {
    // A part belongs to the range that its last element lies in.
    auto i = static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), from) - ends.begin());
    for (; i < parts.size() && ends[i] <= until; ++i) {
      const NormSegment& segment = segments[parts[i].segment];
      double lanes[kSquareLanes];
      loops.squares(segment.data, segment.type, parts[i].begin, parts[i].end, lanes);
      for (int width = kSquareLanes / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
      sums[i] = lanes[0];
    }
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

}  // namespace ratfast
