// Threads, which the caller brings, and the division of many tensors among them.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace ratfast {

using Range = std::function<void(std::int64_t begin, std::int64_t end)>;

// Calls the range on disjoint parts that together make [0, total), none but the last much below `grain`.
using ParallelFor = std::function<void(std::int64_t total, std::int64_t grain, const Range&)>;

// Runs on this many threads of its own, the calling one among them.
ParallelFor threads(int count);

// Several tensors in a row, as one range of elements: so a thousand small ones and one large one divide
// alike.
class Concatenation {
 public:
  void add(std::int64_t numel) { ends_.push_back(total() + numel); }
  std::int64_t total() const { return ends_.empty() ? 0 : ends_.back(); }

  // Calls visit(tensor, begin, end) on what lies within [begin, end). Cuts inside a tensor are moved to
  // multiples of 64 elements, so that neighbouring threads share no cache line and loops start aligned.
  void visit(std::int64_t begin, std::int64_t end,
             const std::function<void(std::size_t, std::int64_t, std::int64_t)>& visit) const;

 private:
  std::vector<std::int64_t> ends_;
};

}  // namespace ratfast
