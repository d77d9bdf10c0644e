#include "image.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "capability.h"
#include "image_leaf.h"

namespace ratfast {
namespace {

const ImageLeaf& image_leaf() {
#if defined(__x86_64__)
  if (std::strcmp(cpu_capability(), "avx512") == 0) return image_leaf_avx512;
  if (std::strcmp(cpu_capability(), "avx2") == 0) return image_leaf_avx2;
#endif
  return image_leaf_default;
}

// The weights of an axis, kept while the sizes stay the same.
class AxisWeights {
 public:
  ResizeTable table(int in, int out) {
    if (in != in_ || out != out_) {
      const ResizeAxis axis = resize_axis(in, out);
      in_ = in, out_ = out, most_ = axis.most, most_pairs_ = (axis.most + 1) / 2;
      firsts_.resize(out);
      counts_.resize(out);
      weights_.resize(static_cast<std::size_t>(out) * axis.most);
      pairs_.assign(static_cast<std::size_t>(out) * most_pairs_ * 2, 0);
      for (int place = 0; place < out; ++place) {
        int* weights = weights_.data() + static_cast<std::size_t>(place) * axis.most;
        counts_[place] = resize_weights(axis, place, firsts_[place], weights);
        std::uint32_t* pairs = pairs_.data() + static_cast<std::size_t>(place) * most_pairs_ * 2;
        for (int i = 0; i < counts_[place]; ++i) {
          const auto weight = static_cast<std::uint32_t>(weights[i]);
          pairs[i / 2 * 2] |= weight >> kLowBits << (i % 2 * 16);
          pairs[i / 2 * 2 + 1] |= (weight & ((1u << kLowBits) - 1)) << (i % 2 * 16);
        }
      }
    }
    return {firsts_.data(), counts_.data(), weights_.data(), most_, pairs_.data(), most_pairs_};
  }

 private:
  int in_ = 0, out_ = 0, most_ = 0, most_pairs_ = 0;
  std::vector<int> firsts_, counts_, weights_;
  std::vector<std::uint32_t> pairs_;
};

// What one thread works with, reused from image to image.
class Workshop {
 public:
  void transform(const ImageSource& source, const ImageTarget& target, std::int64_t n) {
    const auto pitch = static_cast<std::size_t>(image_pitch(target.width));
    const auto line = static_cast<std::size_t>(image_line(source.width));
    between_.resize(std::max({between_.size(), (source.height + 3) / 4 * 4 * pitch, target.height * line}));
    resized_.resize((target.height + 3) / 4 * 4 * pitch);
    edges_.resize(std::max(edges_.size(), 4 * (static_cast<std::size_t>(source.width) * 3 + kImageOverread)));
    image_leaf().transform(source, target, n, columns_.table(source.width, target.width),
                           rows_.table(source.height, target.height),
                           {between_.data(), resized_.data(), edges_.data()});
  }

 private:
  AxisWeights columns_, rows_;
  std::vector<std::uint8_t> between_, resized_, edges_;
};

}  // namespace

void transform_images(const std::vector<ImageSource>& sources, const ImageTarget& target,
                      const ParallelFor& parallel_for) {
  const auto count = static_cast<std::int64_t>(sources.size());
  std::atomic<std::int64_t> next = 0;
  // Images differ in size, so threads take the next one whenever they are done.
  parallel_for(count, 1, [&](std::int64_t, std::int64_t) {
    Workshop workshop;
    for (std::int64_t n = next++; n < count; n = next++)
      workshop.transform(sources[static_cast<std::size_t>(n)], target, n);
  });
}

void normalise_images(const std::uint8_t* pixels, std::int64_t count, const ImageTarget& target,
                      const ParallelFor& parallel_for) {
  constexpr std::int64_t kGrain = 1 << 16;  // pixels that are worth a thread
  parallel_for(count * target.height * target.width, kGrain, [&](std::int64_t begin, std::int64_t end) {
    image_leaf().normalise(pixels + 3 * begin, target, 3 * begin, 3 * (end - begin));
  });
}

}  // namespace ratfast
