#include "gram.h"

#include <algorithm>

#include "capability.h"

namespace ratfast {
namespace {

// Elements whose products are summed before they are added to those of the parts before.
constexpr std::int64_t kPart = std::int64_t{1} << 15;
// Elements that are worth a thread's start.
constexpr std::int64_t kGrain = std::int64_t{1} << 14;

struct Part {
  std::size_t segment;
  std::int64_t begin;
  std::int64_t end;
  std::int64_t place;  // of its first element among those of all tensors
};

std::vector<Part> divide(const std::vector<GramSegment>& segments) {
  std::vector<Part> parts;
  std::int64_t before = 0;
  for (std::size_t t = 0; t < segments.size(); ++t) {
    const std::int64_t numel = segments[t].numel;
    for (std::int64_t begin = 0; begin < numel; begin += kPart)
      parts.push_back({t, begin, std::min(numel, begin + kPart), before + begin});
    before += numel;
  }
  return parts;
}

}  // namespace

void gram(const std::vector<GramSegment>& segments, int sources, double* result,
          const ParallelFor& parallel_for) {
  const std::size_t pairs = static_cast<std::size_t>(sources) * sources;
  std::fill_n(result, segments.size() * pairs, 0.0);
  const std::vector<Part> parts = divide(segments);
  if (parts.empty()) return;
  const std::int64_t total = parts.back().place + parts.back().end - parts.back().begin;
  const Leaf& loops = leaf();
  std::vector<double> sums;  // (parts, rows, columns) of one tile
  for (int row = 0; row < sources; row += kGramModels) {
    for (int column = row; column < sources; column += kGramModels) {
      const GramTile tile{row, std::min(kGramModels, sources - row), column,
                          std::min(kGramModels, sources - column)};
      const std::size_t size = static_cast<std::size_t>(tile.rows) * tile.columns;
      sums.assign(parts.size() * size, 0.0);
      parallel_for(total, kGrain, [&](std::int64_t from, std::int64_t until) {
        std::vector<double> lanes(kGramModels * kGramModels * kGramLanes);
        // A part belongs to the range that its first element lies in.
        const auto starts_before = [](const Part& part, std::int64_t place) { return part.place < place; };
        for (auto part = std::lower_bound(parts.begin(), parts.end(), from, starts_before);
             part != parts.end() && part->place < until; ++part) {
          std::fill(lanes.begin(), lanes.end(), 0.0);
          loops.gram(segments[part->segment], part->begin, part->end, tile, lanes.data());
          double* sum = sums.data() + static_cast<std::size_t>(part - parts.begin()) * size;
          for (int i = 0; i < tile.rows; ++i)
            for (int j = 0; j < tile.columns; ++j, ++sum)
              for (int lane = 0; lane < kGramLanes; ++lane)
                *sum += lanes[static_cast<std::size_t>(i * kGramModels + j) * kGramLanes + lane];
        }
      });
      for (std::size_t p = 0; p < parts.size(); ++p) {
        double* matrix = result + parts[p].segment * pairs;
        const double* sum = sums.data() + p * size;
        for (int i = 0; i < tile.rows; ++i) {
          for (int j = 0; j < tile.columns; ++j) {
            const int a = row + i, b = column + j;
            if (a > b) continue;
            const std::size_t upper = static_cast<std::size_t>(a) * sources + b;
            matrix[upper] += sum[i * tile.columns + j];
            matrix[static_cast<std::size_t>(b) * sources + a] = matrix[upper];
          }
        }
      }
    }
  }
}

}  // namespace ratfast
