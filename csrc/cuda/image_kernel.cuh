// The kernels of transform_images, and the table that describes the work of a few images at a time.
#pragma once

#include "../core/image.h"
#include "device.cuh"

namespace ratfast::cuda {

// Where the working memory of a table lies. A row of weights is that of one output row or column.
struct ImageWorkspace {
  unsigned long long* luma_sums;  // (images)
  std::uint32_t* pixels;          // (images, height, width), resized: red in the low byte
  int* firsts;                    // (images, width + height): of each output column, then of each output row
  int* counts;
  int* weights;  // (images, width + height, most)
  int most;
};

struct ImageTable {
  static constexpr int kImages = 32;
  ImageSource sources[kImages];
  int images;
  long long first;  // place of the first image in the target
  ImageTarget target;
  ImageWorkspace work;

  __host__ __device__ __forceinline__ long long places() const { return target.width + target.height; }
  __host__ __device__ __forceinline__ long long pixels() const {
    return static_cast<long long>(target.width) * target.height;
  }
  // Chunks of kThreads pixels; none holds pixels of two images.
  __host__ __device__ __forceinline__ long long chunks_per_image() const {
    return (pixels() + kThreads - 1) / kThreads;
  }
};
static_assert(sizeof(ImageTable) <= 4096);

__global__ void __launch_bounds__(kThreads) image_weights_kernel(const __grid_constant__ ImageTable table) {
  const long long total = table.images * table.places();
  for (long long i = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x; i < total;
       i += static_cast<long long>(gridDim.x) * kThreads) {
    const int image = static_cast<int>(i / table.places());
    const int place = static_cast<int>(i % table.places());
    const bool column = place < table.target.width;
    const ImageSource& source = table.sources[image];
    const ResizeAxis axis = column ? resize_axis(source.width, table.target.width)
                                   : resize_axis(source.height, table.target.height);
    table.work.counts[i] = resize_weights(axis, column ? place : place - table.target.width,
                                          table.work.firsts[i], table.work.weights + i * table.work.most);
    if (place == 0) table.work.luma_sums[image] = 0;
  }
}

// What one output pixel reads along one axis.
struct ImageTaps {
  int first;
  int count;
  const int* weights;

  __device__ __forceinline__ ImageTaps(const ImageWorkspace& work, long long place)
      : first(work.firsts[place]), count(work.counts[place]), weights(work.weights + place * work.most) {}
};

// The channels of one pixel: sums of products, rounded to 8 bits.
struct ImageSums {
  int r = kWeightHalf, g = kWeightHalf, b = kWeightHalf;

  __device__ __forceinline__ void add(int red, int green, int blue, int weight) {
    r += red * weight;
    g += green * weight;
    b += blue * weight;
  }
  __device__ __forceinline__ void round() {
    r >>= kWeightBits;
    g >>= kWeightBits;
    b >>= kWeightBits;
  }
};

// A weighted pixel of one row (step 3 bytes) or one column (step of a row) of the source.
__device__ __forceinline__ ImageSums along(const std::uint8_t* pixels, long long step,
                                           const ImageTaps& taps) {
  ImageSums sums;
  for (int i = 0; i < taps.count; ++i, pixels += step)
    sums.add(pixels[0], pixels[1], pixels[2], taps.weights[i]);
  sums.round();
  return sums;
}

// The other axis of such pixels.
__device__ __forceinline__ ImageSums across(const std::uint8_t* pixels, long long outer_step,
                                            const ImageTaps& outer, long long inner_step,
                                            const ImageTaps& inner) {
  ImageSums sums;
  for (int i = 0; i < outer.count; ++i) {
    const ImageSums partial = along(pixels + i * outer_step, inner_step, inner);
    sums.add(partial.r, partial.g, partial.b, outer.weights[i]);
  }
  sums.round();
  return sums;
}

__device__ __forceinline__ ImageSums resized(const ImageSource& source, const ImageTarget& target,
                                             const ImageTaps& columns, const ImageTaps& rows) {
  const std::uint8_t* corner = source.pixels + rows.first * source.stride + columns.first * 3;
  // Two calls: taps that are chosen by address would lie in local memory.
  if (lowers_first(source.height, source.width, target.height, target.width))
    return across(corner, 3, columns, source.stride, rows);
  return across(corner, source.stride, rows, 3, columns);
}

// Up to brightness; and the sum of the greys that contrast is about.
__global__ void __launch_bounds__(kThreads) image_resize_kernel(const __grid_constant__ ImageTable table) {
  __shared__ unsigned greys[kThreads];
  const ImageTarget& target = table.target;
  for (long long chunk = blockIdx.x; chunk < table.images * table.chunks_per_image(); chunk += gridDim.x) {
    const int image = static_cast<int>(chunk / table.chunks_per_image());
    const long long pixel = chunk % table.chunks_per_image() * kThreads + threadIdx.x;
    const ImageSource& source = table.sources[image];
    unsigned grey = 0;
    if (pixel < table.pixels()) {
      const int y = static_cast<int>(pixel / target.width), x = static_cast<int>(pixel % target.width);
      const long long places = image * table.places();
      const ImageTaps columns(table.work, places + (source.flip ? target.width - 1 - x : x));
      const ImageTaps rows(table.work, places + target.width + y);
      ImageSums sums = resized(source, target, columns, rows);
      if (source.colours.operations & kBrightness) {
        sums.r = blend<int, float>(0, sums.r, source.colours.brightness);
        sums.g = blend<int, float>(0, sums.g, source.colours.brightness);
        sums.b = blend<int, float>(0, sums.b, source.colours.brightness);
      }
      grey = luma(sums.r, sums.g, sums.b);
      table.work.pixels[image * table.pixels() + pixel] =
          static_cast<std::uint32_t>(sums.r | sums.g << 8 | sums.b << 16);
    }
    if (!(source.colours.operations & kContrast)) continue;  // the same for all threads of the block
    greys[threadIdx.x] = grey;
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half) greys[threadIdx.x] += greys[threadIdx.x + half];
    }
    if (threadIdx.x == 0) atomicAdd(table.work.luma_sums + image, static_cast<unsigned long long>(greys[0]));
    __syncthreads();
  }
}

// From contrast on.
__global__ void __launch_bounds__(kThreads) image_colour_kernel(const __grid_constant__ ImageTable table) {
  const ImageTarget& target = table.target;
  for (long long chunk = blockIdx.x; chunk < table.images * table.chunks_per_image(); chunk += gridDim.x) {
    const int image = static_cast<int>(chunk / table.chunks_per_image());
    const long long pixel = chunk % table.chunks_per_image() * kThreads + threadIdx.x;
    if (pixel >= table.pixels()) continue;
    const ImageColours& colours = table.sources[image].colours;
    const std::uint32_t packed = table.work.pixels[image * table.pixels() + pixel];
    int r = packed & 255, g = packed >> 8 & 255, b = packed >> 16 & 255;
    if (colours.operations & kContrast) {
      const int center = contrast_center(static_cast<long long>(table.work.luma_sums[image]), table.pixels());
      r = blend<int, float>(center, r, colours.contrast);
      g = blend<int, float>(center, g, colours.contrast);
      b = blend<int, float>(center, b, colours.contrast);
    }
    if (colours.operations & kSaturation) {
      const int grey = luma(r, g, b);
      r = blend<int, float>(grey, r, colours.saturation);
      g = blend<int, float>(grey, g, colours.saturation);
      b = blend<int, float>(grey, b, colours.saturation);
    }
    if (colours.operations & kHue) shift_hue<int, float, double>(r, g, b, colours.hue);
    if (colours.operations & kGrayscale) r = g = b = luma(r, g, b);
    const int values[3] = {r, g, b};
    const long long at = ((table.first + image) * table.pixels() + pixel) * 3;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const float v = apart(static_cast<float>(values[c]), target.scale[c]) + target.shift[c];
      if (target.type == ImageType::u8)
        static_cast<std::uint8_t*>(target.data)[at + c] = static_cast<std::uint8_t>(values[c]);
      else if (target.type == ImageType::f32)
        static_cast<float*>(target.data)[at + c] = v;
      else
        static_cast<std::uint16_t*>(target.data)[at + c] = float_to_bf16(v);
    }
  }
}

}  // namespace ratfast::cuda
