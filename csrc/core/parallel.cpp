#include "parallel.h"

#include <algorithm>
#include <thread>

namespace ratfast {

ParallelFor threads(int count) {
  return [count](std::int64_t total, std::int64_t grain, const Range& range) {
    const std::int64_t useful = std::max<std::int64_t>(1, total / std::max<std::int64_t>(1, grain));
    const std::int64_t parts = std::min<std::int64_t>(std::max(1, count), useful);
    const auto cut = [=](std::int64_t part) { return total / parts * part + std::min(part, total % parts); };
    std::vector<std::thread> workers;
    for (std::int64_t part = 1; part < parts; ++part) {
      try {
        workers.emplace_back([&range, begin = cut(part), end = cut(part + 1)] { range(begin, end); });
      } catch (const std::system_error&) {
        range(cut(part), cut(part + 1));  // no thread to be had
      }
    }
    range(0, cut(1));
    for (auto& worker : workers) worker.join();
  };
}

void Concatenation::visit(std::int64_t begin, std::int64_t end,
                          const std::function<void(std::size_t, std::int64_t, std::int64_t)>& visit) const {
  auto tensor = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), begin) - ends_.begin());
  for (; tensor < ends_.size(); ++tensor) {
    const std::int64_t start = tensor == 0 ? 0 : ends_[tensor - 1];
    if (start >= end) break;
    const std::int64_t numel = ends_[tensor] - start;
    const auto cut = [&](std::int64_t position) {
      return position >= numel ? numel : std::max<std::int64_t>(position, 0) / 64 * 64;
    };
    const std::int64_t from = cut(begin - start), to = cut(end - start);
    if (from < to) visit(tensor, from, to);
  }
}

}  // namespace ratfast
