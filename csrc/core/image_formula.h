// What torchvision's transforms do to PIL images, to the bit: weights of the antialiased bilinear resize, and
// the colour operations, each of which rounds to 8 bits. Once, for host loops and device threads.
#pragma once

#include <type_traits>

#include "dtype.h"

namespace ratfast {

// Products that no compiler may fuse with a sum.
template <class A, class B>
RATFAST_HD auto apart(A a, B b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == 4)
    return __fmul_rn(a, b);
  else
    return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// A number as another type, or a vector of the compiler's with other elements.
template <class To, class From>
RATFAST_HD To as(From value) {
#if !defined(__CUDACC__)
  if constexpr (!std::is_arithmetic_v<From>)
    return __builtin_convertvector(value, To);
  else
#endif
    return static_cast<To>(value);
}

// --- Resize
// -----------------------------------------------------------------------------------------------------

// Weights are integers of so many fractional bits; sums of 255 times them fit into 32 bits.
constexpr int kWeightBits = 22;
constexpr int kWeightHalf = 1 << (kWeightBits - 1);

// One axis: a triangle as wide as two input pixels, or as two output pixels where the image shrinks.
struct ResizeAxis {
  int in;
  int out;
  double scale;    // input pixels per output pixel
  double support;  // half of the triangle's width, in input pixels
  int most;        // an output pixel reads at most so many
};

RATFAST_HD ResizeAxis resize_axis(int in, int out) {
  const double scale = static_cast<double>(in) / out;
  const double support = scale < 1.0 ? 1.0 : scale;
  const int whole = static_cast<int>(support);
  return {in, out, scale, support, 2 * (whole < support ? whole + 1 : whole) + 1};
}

// Rows and columns are resized one after the other, with values of 8 bits in between, so that the order
// decides the last bit: columns come first unless the image gets much lower. This is Pillow's rule since its
// version 13; before, columns always came first.
RATFAST_HD bool lowers_first(int in_height, int in_width, int out_height, int out_width) {
  return out_height < in_height && in_height - out_height > 2 * (in_width - out_width);
}

// The input pixels [first, first + returned) that an output pixel reads, and their weights.
RATFAST_HD int resize_weights(const ResizeAxis& axis, int place, int& first, int* weights) {
  const double center = apart(place + 0.5, axis.scale);
  const double sharpness = 1.0 / axis.support;
  const int low = static_cast<int>(center - axis.support + 0.5);
  const int high = static_cast<int>(center + axis.support + 0.5);
  first = low < 0 ? 0 : low;
  const int count = (high > axis.in ? axis.in : high) - first;
  const auto triangle = [&](int i) {
    const double x = apart(i + first - center + 0.5, sharpness);
    const double distance = x < 0.0 ? -x : x;
    return distance < 1.0 ? 1.0 - distance : 0.0;
  };
  double total = 0.0;
  for (int i = 0; i < count; ++i) total += triangle(i);
  for (int i = 0; i < count; ++i)
    weights[i] = static_cast<int>(0.5 + apart(triangle(i) / total, static_cast<double>(1 << kWeightBits)));
  return count;
}

// --- Colours
// ----------------------------------------------------------------------------------------------------

enum ImageOperations { kBrightness = 1, kContrast = 2, kSaturation = 4, kHue = 8, kGrayscale = 16 };

struct ImageColours {
  int operations;  // the ones to carry out, always in the order of their bits
  float brightness;
  float contrast;
  float saturation;
  int hue;  // in 256ths of a turn, 0 to 255
};

// Int, Float and Double below are numbers, or vectors of as many elements.

// ITU-R BT.601.
template <class Int>
RATFAST_HD Int luma(Int r, Int g, Int b) {
  return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
}

// From `base` (factor 0) over x (factor 1) and beyond, cut off below the point and to [0, 255].
template <class Int, class Float>
RATFAST_HD Int blend(Int base, Int x, float factor) {
  const Float v = as<Float>(base) + apart(as<Float>(x - base), factor);
  const Float zero = v - v;
  const Float low = v < zero ? zero : v;
  return as<Int>(low > zero + 255.0f ? zero + 255.0f : low);
}

RATFAST_HD int contrast_center(long long luma_sum, long long pixels) {
  return static_cast<int>(static_cast<double>(luma_sum) / static_cast<double>(pixels) + 0.5);
}

// To HSV of 8 bits each, the hue shifted, and back. Which parts are float and which double decides the last
// bit. Int, Float and Double are numbers or vectors of as many elements.
template <class Int, class Float, class Double>
RATFAST_HD void shift_hue(Int& r, Int& g, Int& b, int shift) {
  const Int upper = g > b ? g : b, lower = g < b ? g : b;
  const Int value = r > upper ? r : upper;
  const Int range = value - (r < lower ? r : lower);
  const Float span = as<Float>(range > 0 ? range : range + 1);
  const Float rc = as<Float>(value - r) / span;
  const Float gc = as<Float>(value - g) / span;
  const Float bc = as<Float>(value - b) / span;
  const Float zero = rc - rc;
  const auto is_red = r == value, is_green = g == value;
  const Float base = is_red ? zero : is_green ? zero + 2.0f : zero + 4.0f;
  const Float plus = is_red ? bc : is_green ? rc : gc;
  const Float minus = is_red ? gc : is_green ? bc : rc;
  const Float sixths = as<Float>(as<Double>(base) + as<Double>(plus) - as<Double>(minus));
  const Double turns = as<Double>(sixths) / 6.0 + 1.0;
  const Float turn = as<Float>(turns - as<Double>(as<Int>(turns)));
  const Int hue = (as<Int>(apart(as<Double>(turn), 255.0)) + shift) & 255;
  const Float ratio = as<Float>(range) / as<Float>(value > 0 ? value : value + 1);
  const Int saturation = as<Int>(apart(as<Double>(ratio), 255.0));

  const Double position = as<Double>(hue * 6) / 255.0;
  const Int sector = as<Int>(position);
  const Float f = as<Float>(position - as<Double>(sector));
  const Float s = as<Float>(as<Double>(saturation) / 255.0);
  const Double wide_value = as<Double>(value), wide_s = as<Double>(s);
  const Int p = as<Int>(apart(wide_value, 1.0 - wide_s) + 0.5);
  const Int q = as<Int>(apart(wide_value, 1.0 - as<Double>(apart(s, f))) + 0.5);
  const Int t = as<Int>(apart(wide_value, 1.0 - apart(wide_s, 1.0 - as<Double>(f))) + 0.5);
  const Int place = sector == 6 ? sector - 6 : sector;
  r = place == 1 ? q : place == 2 ? p : place == 3 ? p : place == 4 ? t : value;
  g = place == 0 ? t : place == 3 ? q : place > 3 ? p : value;
  b = place < 2 ? p : place == 2 ? t : place == 5 ? q : value;
}

}  // namespace ratfast
