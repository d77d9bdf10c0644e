// Colour operations on rows of packed pixels of four bytes, of whole vectors. Included by image_leaf.cpp
// only, inside its anonymous namespace.

using Int = Vector<int, kLanes>;
using Float = Vector<float, kLanes>;

// Calls change(r, g, b) with vectors of the pixels in [0, pitch) bytes, and keeps what it makes of them.
template <int lanes, class Change>
RATFAST_INLINE void each_pixel(std::uint8_t* row, std::int64_t pitch, const Change& change) {
  for (std::int64_t at = 0; at < pitch; at += 4 * lanes) {
    Vector<int, lanes> pixels;
    memcpy(&pixels, row + at, sizeof(pixels));
    Vector<int, lanes> r = pixels & 255, g = pixels >> 8 & 255, b = pixels >> 16 & 255;
    change(r, g, b);
    pixels = r | g << 8 | b << 16;
    memcpy(row + at, &pixels, sizeof(pixels));
  }
}

RATFAST_INLINE void blend_pixels(Int base, float factor, Int& r, Int& g, Int& b) {
  r = blend<Int, Float>(base, r, factor);
  g = blend<Int, Float>(base, g, factor);
  b = blend<Int, Float>(base, b, factor);
}

// Brightness, and the sum of the greys that contrast is about. Pixels behind the row must be black.
RATFAST_INLINE long long brighten(const ImageColours& colours, std::uint8_t* row, std::int64_t pitch) {
  Int sums = {};  // no row is so wide that they overflow
  const bool brightness = colours.operations & kBrightness;
  each_pixel<kLanes>(row, pitch, [&](Int& r, Int& g, Int& b) __attribute__((always_inline)) {
    if (brightness) blend_pixels(Int{}, colours.brightness, r, g, b);
    sums += luma(r, g, b);
  });
  long long sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += sums[i];
  return sum;
}

// What follows brightness; contrast is about `center`.
RATFAST_INLINE void recolour(const ImageColours& colours, int center, std::uint8_t* row, std::int64_t pitch) {
  if (colours.operations & kContrast)
    each_pixel<kLanes>(row, pitch, [&](Int& r, Int& g, Int& b) __attribute__((always_inline)) {
      blend_pixels(Int{} + center, colours.contrast, r, g, b);
    });
  if (colours.operations & kSaturation)
    each_pixel<kLanes>(row, pitch, [&](Int& r, Int& g, Int& b) __attribute__((always_inline)) {
      blend_pixels(luma(r, g, b), colours.saturation, r, g, b);
    });
  if (colours.operations & kHue) {
    using Wide = Vector<int, kWideLanes>;
    each_pixel<kWideLanes>(row, pitch, [&](Wide& r, Wide& g, Wide& b) __attribute__((always_inline)) {
      shift_hue<Wide, Vector<float, kWideLanes>, Vector<double, kWideLanes>>(r, g, b, colours.hue);
    });
  }
  if (colours.operations & kGrayscale)
    each_pixel<kLanes>(
        row, pitch, [](Int& r, Int& g, Int& b) __attribute__((always_inline)) { r = g = b = luma(r, g, b); });
}
