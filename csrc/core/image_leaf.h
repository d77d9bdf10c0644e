// The loops over the pixels of one image, compiled once per instruction set.
#pragma once

#include "image.h"

namespace ratfast {

// Weights of one axis: place i reads counts[i] pixels from firsts[i] on, weights[i * most ...].
struct ResizeTable {
  const int* firsts;
  const int* counts;
  const int* weights;
  int most;
  // The same for the multiply-add of pairs of 16 bits: for pixels 2 j and 2 j + 1 of place i, with zeros
  // behind the last, pairs[(i * most_pairs + j) * 2] holds the weights' high parts, and the next one their
  // kLowBits low bits.
  const std::uint32_t* pairs;
  int most_pairs;
};
inline constexpr int kLowBits = 11;

// Working memory has four bytes per pixel, the last of them unused, and rows of whole vectors.
inline constexpr int kImageLine = 64;
inline constexpr int kImageOverread = 16;  // bytes behind a row that may be read
constexpr std::int64_t image_pitch(int width) {
  return (static_cast<std::int64_t>(width) * 4 + kImageLine - 1) / kImageLine * kImageLine;
}

struct ImageWork {
  std::uint8_t* between;  // (source height rounded up to 4, pitch), or (target height, line of the source)
  std::uint8_t* resized;  // (target height rounded up to 4, pitch)
  std::uint8_t* edges;    // (4, source width * 3 + kImageOverread): copies of the last rows
};
// Bytes of a row of packed pixels, rounded up.
constexpr std::int64_t image_line(int width) {
  return (static_cast<std::int64_t>(width) * 3 + kImageLine - 1) / kImageLine * kImageLine;
}

struct ImageLeaf {
  // Writes image n of the target.
  void (*transform)(const ImageSource&, const ImageTarget&, std::int64_t n, const ResizeTable& columns,
                    const ResizeTable& rows, const ImageWork&);
  // Writes values [first, first + count) of the target, floats, from as many bytes, the first of them red.
  void (*normalise)(const std::uint8_t* from, const ImageTarget&, std::int64_t first, std::int64_t count);
};

extern const ImageLeaf image_leaf_default;
#if defined(__x86_64__)
extern const ImageLeaf image_leaf_avx2;
extern const ImageLeaf image_leaf_avx512;
#endif

}  // namespace ratfast
