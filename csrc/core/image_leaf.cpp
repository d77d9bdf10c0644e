// The loops over the pixels of one image. Compiled several times, each with other instruction-set flags and
// another RATFAST_IMAGE_LEAF. Written in the compiler's own vectors and in loops that it turns into vectors.
#include "image_leaf.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ratfast {
namespace {

// As wide as the machine's registers: vectors in halves are slow to take apart.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kWideLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kWideLanes = 4;
#else
constexpr int kLanes = 4, kWideLanes = 4;
#endif
static_assert(kImageLine / 4 % kLanes == 0);

template <class T, int lanes>
using Vector __attribute__((vector_size(sizeof(T) * lanes))) = T;

#define RATFAST_INLINE static inline __attribute__((always_inline))

#if defined(__AVX2__)

// A pixel of several rows side by side, in 128 bits each, so that they share their weights.
#if defined(__AVX512F__)
struct Rows {
  using V = __m512i;
  static constexpr int count = 4;
  RATFAST_INLINE V load(const std::uint8_t* const* rows, std::int64_t at) {
    const auto row = [&](int j) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[j] + at)); };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(row(0)), row(1), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(row(2)), row(3), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  RATFAST_INLINE V all(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  RATFAST_INLINE V quarters(__m128i x) { return _mm512_broadcast_i32x4(x); }
  RATFAST_INLINE V pick(V v, V places) { return _mm512_shuffle_epi8(v, places); }
  RATFAST_INLINE V add(V a, V b) { return _mm512_add_epi32(a, b); }
  RATFAST_INLINE V madd(V v, V weights, V sum) { return add(sum, _mm512_madd_epi16(v, weights)); }
  template <int bits>
  RATFAST_INLINE V left(V v) {
    return _mm512_slli_epi32(v, bits);
  }
  template <int bits>
  RATFAST_INLINE V right(V v) {
    return _mm512_srli_epi32(v, bits);
  }
  // Of each quarter the first four bytes.
  RATFAST_INLINE void store(V v, std::uint8_t* to, std::int64_t pitch) {
    const auto put = [&](int j, __m128i quarter) {
      const int pixel = _mm_cvtsi128_si32(quarter);
      memcpy(to + j * pitch, &pixel, 4);
    };
    put(0, _mm512_castsi512_si128(v));
    put(1, _mm512_extracti32x4_epi32(v, 1));
    put(2, _mm512_extracti32x4_epi32(v, 2));
    put(3, _mm512_extracti32x4_epi32(v, 3));
  }
};
#else
struct Rows {
  using V = __m256i;
  static constexpr int count = 2;
  RATFAST_INLINE V load(const std::uint8_t* const* rows, std::int64_t at) {
    const auto row = [&](int j) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[j] + at)); };
    return _mm256_inserti128_si256(_mm256_castsi128_si256(row(0)), row(1), 1);
  }
  RATFAST_INLINE V all(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  RATFAST_INLINE V quarters(__m128i x) { return _mm256_broadcastsi128_si256(x); }
  RATFAST_INLINE V pick(V v, V places) { return _mm256_shuffle_epi8(v, places); }
  RATFAST_INLINE V add(V a, V b) { return _mm256_add_epi32(a, b); }
  RATFAST_INLINE V madd(V v, V weights, V sum) { return add(sum, _mm256_madd_epi16(v, weights)); }
  template <int bits>
  RATFAST_INLINE V left(V v) {
    return _mm256_slli_epi32(v, bits);
  }
  template <int bits>
  RATFAST_INLINE V right(V v) {
    return _mm256_srli_epi32(v, bits);
  }
  RATFAST_INLINE void store(V v, std::uint8_t* to, std::int64_t pitch) {
    const int first = _mm_cvtsi128_si32(_mm256_castsi256_si128(v));
    const int second = _mm_cvtsi128_si32(_mm256_extracti128_si256(v, 1));
    memcpy(to, &first, 4);
    memcpy(to + pitch, &second, 4);
  }
};
#endif

// Output pixel x of the rows, four input pixels at a time: each sum of products is made of two, with the high
// and the low parts of the weights.
RATFAST_INLINE void narrow_pixel(const std::uint8_t* const* rows, const ResizeTable& columns, int x,
                                 std::uint8_t* to, std::int64_t pitch) {
  using V = Rows::V;
  const V first_two = Rows::quarters(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const V next_two =
      Rows::quarters(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  const V gathered =
      Rows::quarters(_mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  const std::uint32_t* weights = columns.pairs + static_cast<std::ptrdiff_t>(x) * columns.most_pairs * 2;
  const int pairs = (columns.counts[x] + 1) / 2;
  std::int64_t at = columns.firsts[x] * std::int64_t{3};
  V high = Rows::all(0), low = Rows::all(kWeightHalf);
  for (int i = 0; i < pairs; i += 2, at += 12, weights += 4) {
    const V pixels = Rows::load(rows, at);
    const V two = Rows::pick(pixels, first_two);
    high = Rows::madd(two, Rows::all(weights[0]), high);
    low = Rows::madd(two, Rows::all(weights[1]), low);
    if (i + 1 == pairs) break;
    const V more = Rows::pick(pixels, next_two);
    high = Rows::madd(more, Rows::all(weights[2]), high);
    low = Rows::madd(more, Rows::all(weights[3]), low);
  }
  const V sum = Rows::add(Rows::left<kLowBits>(high), low);
  Rows::store(Rows::pick(Rows::right<kWeightBits>(sum), gathered), to, pitch);
}

#else

struct Rows {
  static constexpr int count = 1;
};

RATFAST_INLINE void narrow_pixel(const std::uint8_t* const* rows, const ResizeTable& columns, int x,
                                 std::uint8_t* to, std::int64_t) {
  const int* weights = columns.weights + static_cast<std::ptrdiff_t>(x) * columns.most;
  const std::uint8_t* from = rows[0] + columns.firsts[x] * std::int64_t{3};
  int r = kWeightHalf, g = kWeightHalf, b = kWeightHalf;
  for (int i = 0; i < columns.counts[x]; ++i, from += 3) {
    r += from[0] * weights[i];
    g += from[1] * weights[i];
    b += from[2] * weights[i];
  }
  const auto pixel =
      static_cast<std::uint32_t>(r >> kWeightBits | g >> kWeightBits << 8 | b >> kWeightBits << 16);
  memcpy(to, &pixel, 4);
}

#endif

// Resizes every row, into pixels of four bytes at `target`. With `flip` from right to left.
void narrow(const ImageSource& source, int width, const ResizeTable& columns, const ImageWork& work,
            std::uint8_t* target) {
  const std::int64_t pitch = image_pitch(width);
  const std::int64_t bytes = source.width * std::int64_t{3};
  const std::uint8_t* end = source.pixels + (source.height - 1) * source.stride + bytes;
  for (std::int64_t y = 0; y < source.height; y += Rows::count) {
    const std::uint8_t* rows[Rows::count];
    for (int j = 0; j < Rows::count; ++j) {
      const std::int64_t last = source.height - 1;
      const std::uint8_t* row = source.pixels + (y + j < last ? y + j : last) * source.stride;
      rows[j] = row;
      // Nothing is read behind the image: its last rows are copied to where there is room.
      if (end - row >= bytes + kImageOverread) continue;
      std::uint8_t* copy = work.edges + j * (bytes + kImageOverread);
      memcpy(copy, row, static_cast<std::size_t>(bytes));
      rows[j] = copy;
    }
    std::uint8_t* to = target + y * pitch;
    for (int x = 0; x < width; ++x)
      narrow_pixel(rows, columns, x, to + (source.flip ? width - 1 - x : x) * std::int64_t{4}, pitch);
  }
}

#if defined(__SSE2__)

// A register of bytes of one row. Unpacking and packing go by 128 bits, so that one undoes the other.
#define RATFAST_BYTE_LINE(type, prefix)                                                                   \
  struct Line {                                                                                           \
    using V = type;                                                                                       \
    RATFAST_INLINE V all(std::uint32_t x) { return prefix##_set1_epi32(static_cast<int>(x)); }            \
    RATFAST_INLINE V low(V a, V b) { return prefix##_unpacklo_epi8(a, b); }                               \
    RATFAST_INLINE V high(V a, V b) { return prefix##_unpackhi_epi8(a, b); }                              \
    RATFAST_INLINE V madd(V v, V w, V sum) { return prefix##_add_epi32(sum, prefix##_madd_epi16(v, w)); } \
    RATFAST_INLINE V total(V upper, V lower) {                                                            \
      return prefix##_srli_epi32(prefix##_add_epi32(prefix##_slli_epi32(upper, kLowBits), lower),         \
                                 kWeightBits);                                                            \
    }                                                                                                     \
    RATFAST_INLINE V pack(V a, V b, V c, V d) {                                                           \
      return prefix##_packus_epi16(prefix##_packs_epi32(a, b), prefix##_packs_epi32(c, d));               \
    }                                                                                                     \
  }
#if defined(__AVX512F__)
RATFAST_BYTE_LINE(__m512i, _mm512);
#elif defined(__AVX2__)
RATFAST_BYTE_LINE(__m256i, _mm256);
#else
RATFAST_BYTE_LINE(__m128i, _mm);
#endif

// One row of the lower image, from the rows that it reads, two at a time. Writes whole lines, and reads none
// of the rows beyond their `bytes`.
void shorten(const std::uint8_t* rows, std::int64_t stride, std::int64_t bytes, const ResizeTable& table,
             int y, std::uint8_t* to) {
  using V = Line::V;
  constexpr auto size = static_cast<std::int64_t>(sizeof(V));
  const int count = table.counts[y];
  const std::uint32_t* pairs = table.pairs + static_cast<std::ptrdiff_t>(y) * table.most_pairs * 2;
  rows += table.firsts[y] * stride;
  for (std::int64_t at = 0; at < bytes; at += size) {
    const auto load = [&](int i) {
      V v = {};
      if (at + size <= bytes)
        memcpy(&v, rows + i * stride + at, sizeof(V));
      else
        memcpy(&v, rows + i * stride + at, static_cast<std::size_t>(bytes - at));
      return v;
    };
    V upper[4], lower[4];
    for (int k = 0; k < 4; ++k) upper[k] = V{}, lower[k] = Line::all(kWeightHalf);
    for (int i = 0; i < count; i += 2) {
      const V first = load(i), second = i + 1 < count ? load(i + 1) : V{};
      const V low = Line::low(first, second), high = Line::high(first, second);
      const V words[4] = {Line::low(low, V{}), Line::high(low, V{}), Line::low(high, V{}),
                          Line::high(high, V{})};
      const V w = Line::all(pairs[i]), v = Line::all(pairs[i + 1]);
      for (int k = 0; k < 4; ++k) {
        upper[k] = Line::madd(words[k], w, upper[k]);
        lower[k] = Line::madd(words[k], v, lower[k]);
      }
    }
    const V line = Line::pack(Line::total(upper[0], lower[0]), Line::total(upper[1], lower[1]),
                              Line::total(upper[2], lower[2]), Line::total(upper[3], lower[3]));
    memcpy(to + at, &line, sizeof(V));
  }
}

#else

void shorten(const std::uint8_t* rows, std::int64_t stride, std::int64_t bytes, const ResizeTable& table,
             int y, std::uint8_t* to) {
  const int* weights = table.weights + static_cast<std::ptrdiff_t>(y) * table.most;
  rows += table.firsts[y] * stride;
  for (std::int64_t at = 0; at < bytes; ++at) {
    int sum = kWeightHalf;
    for (int i = 0; i < table.counts[y]; ++i) sum += rows[i * stride + at] * weights[i];
    to[at] = static_cast<std::uint8_t>(sum >> kWeightBits);
  }
}

#endif

// The resized image in work.resized.
void resize(const ImageSource& source, const ImageTarget& target, const ResizeTable& columns,
            const ResizeTable& rows, const ImageWork& work) {
  const std::int64_t pitch = image_pitch(target.width);
  if (lowers_first(source.height, source.width, target.height, target.width)) {
    ImageSource lower = source;
    lower.pixels = work.between;
    lower.stride = image_line(source.width);
    lower.height = target.height;
    for (int y = 0; y < target.height; ++y)
      shorten(source.pixels, source.stride, source.width * std::int64_t{3}, rows, y,
              work.between + y * lower.stride);
    narrow(lower, target.width, columns, work, work.resized);
  } else {
    narrow(source, target.width, columns, work, work.between);
    for (int y = 0; y < target.height; ++y)
      shorten(work.between, pitch, pitch, rows, y, work.resized + y * pitch);
  }
}

// Colours of one row, a plane per channel, up to the end of the line: what lies behind the row is never
// stored.
struct Planes {
  int* r;
  int* g;
  int* b;
  int width;

  // Calls change(r, g, b) with vectors.
  template <int lanes, class Change>
  RATFAST_INLINE void each(const Planes& planes, const Change& change) {
    for (int x = 0; x < planes.width; x += lanes) {
      Vector<int, lanes> red, green, blue;
      memcpy(&red, planes.r + x, sizeof(red));
      memcpy(&green, planes.g + x, sizeof(green));
      memcpy(&blue, planes.b + x, sizeof(blue));
      change(red, green, blue);
      memcpy(planes.r + x, &red, sizeof(red));
      memcpy(planes.g + x, &green, sizeof(green));
      memcpy(planes.b + x, &blue, sizeof(blue));
    }
  }
};

void unpack(const std::uint8_t* __restrict__ row, const Planes& planes) {
  int* __restrict__ r = planes.r;
  int* __restrict__ g = planes.g;
  int* __restrict__ b = planes.b;
  for (int x = 0; x < planes.width; ++x) {
    std::uint32_t pixel;
    memcpy(&pixel, row + 4 * x, 4);
    r[x] = static_cast<int>(pixel & 255);
    g[x] = static_cast<int>(pixel >> 8 & 255);
    b[x] = static_cast<int>(pixel >> 16 & 255);
  }
}

void pack(const Planes& planes, std::uint8_t* __restrict__ row) {
  const int* __restrict__ r = planes.r;
  const int* __restrict__ g = planes.g;
  const int* __restrict__ b = planes.b;
  for (int x = 0; x < planes.width; ++x) {
    const auto pixel = static_cast<std::uint32_t>(r[x] | g[x] << 8 | b[x] << 16);
    memcpy(row + 4 * x, &pixel, 4);
  }
}

long long luma_sum(const Planes& planes, int width) {
  const int* __restrict__ r = planes.r;
  const int* __restrict__ g = planes.g;
  const int* __restrict__ b = planes.b;
  int sum = 0;  // of a row: no row is so wide that it overflows
  for (int x = 0; x < width; ++x) sum += luma(r[x], g[x], b[x]);
  return sum;
}

using Int = Vector<int, kLanes>;
using Float = Vector<float, kLanes>;

// `of(r, g, b)` is what each channel is blended with.
template <class Base>
RATFAST_INLINE void blend_planes(const Planes& planes, float factor, const Base& of) {
  Planes::each<kLanes>(planes, [&](Int& r, Int& g, Int& b) __attribute__((always_inline)) {
    const Int base = of(r, g, b);
    r = blend<Int, Float>(base, r, factor);
    g = blend<Int, Float>(base, g, factor);
    b = blend<Int, Float>(base, b, factor);
  });
}

// What follows brightness.
void recolour(const ImageColours& colours, int center, const Planes& planes) {
  if (colours.operations & kContrast)
    blend_planes(planes, colours.contrast, [=](Int, Int, Int) { return Int{} + center; });
  if (colours.operations & kSaturation) blend_planes(planes, colours.saturation, luma<Int>);
  if (colours.operations & kHue) {
    using Wide = Vector<int, kWideLanes>;
    const int shift = colours.hue;
    Planes::each<kWideLanes>(planes, [=](Wide& r, Wide& g, Wide& b) __attribute__((always_inline)) {
      shift_hue<Wide, Vector<float, kWideLanes>, Vector<double, kWideLanes>>(r, g, b, shift);
    });
  }
  if (colours.operations & kGrayscale)
    Planes::each<kLanes>(
        planes, [](Int& r, Int& g, Int& b) __attribute__((always_inline)) { r = g = b = luma(r, g, b); });
}

void store(const Planes& planes, const ImageTarget& target, std::int64_t row) {
  const int* __restrict__ r = planes.r;
  const int* __restrict__ g = planes.g;
  const int* __restrict__ b = planes.b;
  const std::int64_t first = row * target.width * 3;
  if (target.type == ImageType::u8) {
    auto* __restrict__ out = static_cast<std::uint8_t*>(target.data) + first;
    for (int x = 0; x < target.width; ++x) {
      out[3 * x] = static_cast<std::uint8_t>(r[x]);
      out[3 * x + 1] = static_cast<std::uint8_t>(g[x]);
      out[3 * x + 2] = static_cast<std::uint8_t>(b[x]);
    }
    return;
  }
  const float sr = target.scale[0], sg = target.scale[1], sb = target.scale[2];
  const float tr = target.shift[0], tg = target.shift[1], tb = target.shift[2];
  if (target.type == ImageType::f32) {
    auto* __restrict__ out = static_cast<float*>(target.data) + first;
    for (int x = 0; x < target.width; ++x) {
      out[3 * x] = static_cast<float>(r[x]) * sr + tr;
      out[3 * x + 1] = static_cast<float>(g[x]) * sg + tg;
      out[3 * x + 2] = static_cast<float>(b[x]) * sb + tb;
    }
    return;
  }
  auto* __restrict__ out = static_cast<std::uint16_t*>(target.data) + first;
  for (int x = 0; x < target.width; ++x) {
    out[3 * x] = float_to_bf16(static_cast<float>(r[x]) * sr + tr);
    out[3 * x + 1] = float_to_bf16(static_cast<float>(g[x]) * sg + tg);
    out[3 * x + 2] = float_to_bf16(static_cast<float>(b[x]) * sb + tb);
  }
}

void transform(const ImageSource& source, const ImageTarget& target, std::int64_t n,
               const ResizeTable& columns, const ResizeTable& rows, const ImageWork& work) {
  const std::int64_t pitch = image_pitch(target.width);
  const ImageColours colours = source.colours;
  const auto width = static_cast<int>(pitch / 4);
  const Planes planes = {work.planes, work.planes + width, work.planes + 2 * width, width};
  resize(source, target, columns, rows, work);
  long long sum = 0;
  for (int y = 0; (colours.operations & (kBrightness | kContrast)) && y < target.height; ++y) {
    std::uint8_t* row = work.resized + y * pitch;
    unpack(row, planes);
    if (colours.operations & kBrightness) {
      blend_planes(planes, colours.brightness, [](Int, Int, Int) { return Int{}; });
      pack(planes, row);
    }
    if (colours.operations & kContrast) sum += luma_sum(planes, target.width);
  }
  const int center = contrast_center(sum, static_cast<long long>(target.height) * target.width);
  for (int y = 0; y < target.height; ++y) {
    unpack(work.resized + y * pitch, planes);
    recolour(colours, center, planes);
    store(planes, target, n * target.height + y);
  }
}

}  // namespace

extern const ImageLeaf RATFAST_IMAGE_LEAF;
const ImageLeaf RATFAST_IMAGE_LEAF = {transform};

}  // namespace ratfast
