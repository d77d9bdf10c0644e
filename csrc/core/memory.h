// The rule about memory that every binding of mix and combine enforces.
#pragma once

#include <algorithm>
#include <vector>

#include "leaf.h"

namespace ratfast {

// What is wrong with where the tensors lie, or null: outputs must be apart, and each either the whole of a
// source of its own segment, in its element type, or apart from all sources.
inline const char* memory_problem(const std::vector<MixSegment>& segments, int outputs, int sources) {
  struct Span {
    std::uintptr_t begin, end;
    std::size_t segment;
    DType type;
  };
  const auto span = [&](std::size_t t, const void* p, DType type) {
    const auto begin = reinterpret_cast<std::uintptr_t>(p);
    return Span{begin, begin + static_cast<std::uintptr_t>(segments[t].numel * item_size(type)), t, type};
  };
  std::vector<Span> written;
  for (std::size_t t = 0; t < segments.size(); ++t)
    for (int k = 0; k < outputs && segments[t].numel > 0; ++k)
      written.push_back(span(t, segments[t].outputs[k], segments[t].output_types[k]));
  const auto earlier = [](const Span& a, const Span& b) { return a.begin < b.begin; };
  std::sort(written.begin(), written.end(), earlier);
  for (std::size_t i = 1; i < written.size(); ++i)
    if (written[i].begin < written[i - 1].end) return "two outputs share memory";
  for (std::size_t t = 0; t < segments.size(); ++t) {
    for (int n = 0; n < sources && segments[t].numel > 0; ++n) {
      const Span read = span(t, segments[t].sources[n], segments[t].source_types[n]);
      // Outputs are apart, so that the last one to begin before this source ends is the one to look at.
      const auto after = std::lower_bound(written.begin(), written.end(), Span{read.end, 0, 0, {}}, earlier);
      if (after == written.begin()) continue;
      const Span& nearest = *(after - 1);
      const bool same = nearest.begin == read.begin && nearest.segment == t && nearest.type == read.type;
      if (nearest.end > read.begin && !same)
        return "an output overlaps a source without being the same tensor";
    }
  }
  return nullptr;
}

// The same for combine, whose base counts as a source; `lists` is the number of sources.
inline const char* memory_problem(const std::vector<CombineSegment>& segments, int lists) {
  std::vector<const void*> read;
  std::vector<DType> types;
  for (const auto& segment : segments) {
    read.insert(read.end(), segment.sources, segment.sources + lists);
    types.insert(types.end(), segment.source_types, segment.source_types + lists);
    // Without a base the first source stands in for it.
    read.push_back(segment.base != nullptr ? segment.base : segment.sources[0]);
    types.push_back(segment.base != nullptr ? segment.base_type : segment.source_types[0]);
  }
  std::vector<MixSegment> mixes;
  for (std::size_t t = 0; t < segments.size(); ++t) {
    const std::size_t first = t * static_cast<std::size_t>(lists + 1);
    mixes.push_back({segments[t].numel, read.data() + first, types.data() + first, &segments[t].output,
                     &segments[t].output_type});
  }
  return memory_problem(mixes, 1, lists + 1);
}

}  // namespace ratfast
