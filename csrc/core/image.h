// Crops, resizes, flips, recolours and normalises images: one pass from uint8 pixels to a batch, and another
// for what only has to be normalised.
#pragma once

#include <cstdint>
#include <vector>

#include "image_formula.h"
#include "parallel.h"

namespace ratfast {

enum class ImageType : std::uint8_t { u8, f32, bf16 };

RATFAST_HD constexpr int image_item_size(ImageType type) {
  return type == ImageType::u8 ? 1 : type == ImageType::f32 ? 4 : 2;
}

// The part of an image that is used: RGB, rows of packed pixels.
struct ImageSource {
  const std::uint8_t* pixels;  // of the crop's first pixel
  std::int64_t stride;         // bytes from a row to the next
  int height;                  // of the crop
  int width;
  bool flip;
  ImageColours colours;
};

// (N, height, width, 3), contiguous. Values are stored as x * scale + shift of their channel, uint8 as they
// are.
struct ImageTarget {
  void* data;
  ImageType type;
  int height;
  int width;
  float scale[3];
  float shift[3];
};

// Image n of the sources becomes image n of the target; different images run on different threads.
void transform_images(const std::vector<ImageSource>& sources, const ImageTarget& target,
                      const ParallelFor& parallel_for);

// Scales and shifts images that are already of the target's size, (count, height, width, 3), contiguous, into
// floats.
void normalise_images(const std::uint8_t* pixels, std::int64_t count, const ImageTarget& target,
                      const ParallelFor& parallel_for);

}  // namespace ratfast
