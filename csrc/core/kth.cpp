#include "kth.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <mutex>

#include "capability.h"

namespace ratfast {
namespace {

constexpr std::int64_t kBlock = 1024;
// With fewer elements a copy costs less than the tables.
constexpr std::int64_t kFew = std::int64_t{1} << 15;
constexpr std::int64_t kGrain = std::int64_t{1} << 18;

// Magnitudes of floats rank as the 31 bits of their patterns do, which are counted in two passes.
constexpr int kLowBits = 15;
constexpr std::uint32_t kLowMask = (1u << kLowBits) - 1;

using Bits = const std::function<void(const float* values, std::int64_t count)>;

void visit_magnitudes(const std::vector<MagnitudeSegment>& segments, const Concatenation& elements,
                      std::int64_t from, std::int64_t until, const Bits& visit) {
  float values[kBlock];
  elements.visit(from, until, [&](std::size_t t, std::int64_t begin, std::int64_t end) {
    for (; begin < end; begin += kBlock) {
      const std::int64_t stop = std::min(end, begin + kBlock);
      leaf().magnitudes(segments[t], begin, stop, values);
      visit(values, stop - begin);
    }
  });
}

using Counts = std::vector<std::int64_t>;

// How often each value of place(bits) occurs; -1 is not counted.
template <class Place>
Counts histogram(const std::vector<MagnitudeSegment>& segments, const Concatenation& elements,
                 std::size_t places, const ParallelFor& parallel_for, const Place& place) {
  Counts counts(places, 0);
  std::mutex mutex;
  parallel_for(elements.total(), kGrain, [&](std::int64_t from, std::int64_t until) {
    Counts own(places, 0);
    visit_magnitudes(segments, elements, from, until, [&](const float* values, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t at = place(bits_of<std::uint32_t>(values[i]));
        if (at >= 0) ++own[static_cast<std::size_t>(at)];
      }
    });
    const std::lock_guard<std::mutex> lock(mutex);
    for (std::size_t i = 0; i < places; ++i) counts[i] += own[i];
  });
  return counts;
}

// The place that holds the rank-th largest, rank > 0; `rank` becomes the rank within it.
std::size_t place_of_rank(const Counts& counts, std::int64_t& rank) {
  std::size_t place = counts.size() - 1;
  for (; place > 0 && counts[place] < rank; --place) rank -= counts[place];
  return place;
}

}  // namespace

float kth_magnitude(const std::vector<MagnitudeSegment>& segments, std::int64_t count,
                    const ParallelFor& parallel_for) {
  Concatenation elements;
  for (const auto& segment : segments) elements.add(segment.numel);
  if (count <= 0) return std::numeric_limits<float>::infinity();
  if (count >= elements.total()) return 0;
  if (elements.total() <= kFew) {
    std::vector<std::uint32_t> all;
    visit_magnitudes(segments, elements, 0, elements.total(), [&](const float* values, std::int64_t number) {
      for (std::int64_t i = 0; i < number; ++i) all.push_back(bits_of<std::uint32_t>(values[i]));
    });
    const auto kth = all.begin() + (count - 1);
    std::nth_element(all.begin(), kth, all.end(), std::greater<>());
    return bits_of<float>(*kth);
  }
  const auto high = static_cast<std::uint32_t>(
      place_of_rank(histogram(segments, elements, std::size_t{1} << (31 - kLowBits), parallel_for,
                              [](std::uint32_t bits) { return static_cast<std::int64_t>(bits >> kLowBits); }),
                    count));
  const auto low = static_cast<std::uint32_t>(
      place_of_rank(histogram(segments, elements, std::size_t{1} << kLowBits, parallel_for,
                              [high](std::uint32_t bits) {
                                return bits >> kLowBits == high ? static_cast<std::int64_t>(bits & kLowMask)
                                                                : std::int64_t{-1};
                              }),
                    count));
  return bits_of<float>(high << kLowBits | low);
}

}  // namespace ratfast
