// Resizing of 8-bit images, columns and rows one after the other. Included by image_leaf.cpp only, inside its
// anonymous namespace.

#if defined(__SSE2__)

// A register of bytes, in which sums of products are made of two, with the high and the low parts of the
// weights. Unpacking and packing go by 128 bits, so that one undoes the other.
#define RATFAST_BYTES(type, prefix)                                                                       \
  struct Bytes {                                                                                          \
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
RATFAST_BYTES(__m512i, _mm512);
#elif defined(__AVX2__)
RATFAST_BYTES(__m256i, _mm256);
#else
RATFAST_BYTES(__m128i, _mm);
#endif

#endif

#if defined(__AVX2__)

// A pixel of several rows side by side, in 128 bits each, so that they share their weights.
struct Rows : Bytes {
  static constexpr int count = sizeof(V) / 16;
  RATFAST_INLINE __m128i row(const std::uint8_t* const* rows, int j, std::int64_t at) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[j] + at));
  }
  RATFAST_INLINE void put(__m128i quarter, std::uint8_t* to) {
    const int pixel = _mm_cvtsi128_si32(quarter);
    memcpy(to, &pixel, 4);
  }
  // `store` writes the first four bytes of each row.
#if defined(__AVX512F__)
  RATFAST_INLINE V load(const std::uint8_t* const* rows, std::int64_t at) {
    const __m256i low =
        _mm256_inserti128_si256(_mm256_castsi128_si256(row(rows, 0, at)), row(rows, 1, at), 1);
    const __m256i high =
        _mm256_inserti128_si256(_mm256_castsi128_si256(row(rows, 2, at)), row(rows, 3, at), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  RATFAST_INLINE V each(__m128i x) { return _mm512_broadcast_i32x4(x); }
  RATFAST_INLINE V pick(V v, V places) { return _mm512_shuffle_epi8(v, places); }
  RATFAST_INLINE void store(V v, std::uint8_t* to, std::int64_t pitch) {
    put(_mm512_castsi512_si128(v), to);
    put(_mm512_extracti32x4_epi32(v, 1), to + pitch);
    put(_mm512_extracti32x4_epi32(v, 2), to + 2 * pitch);
    put(_mm512_extracti32x4_epi32(v, 3), to + 3 * pitch);
  }
#else
  RATFAST_INLINE V load(const std::uint8_t* const* rows, std::int64_t at) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(row(rows, 0, at)), row(rows, 1, at), 1);
  }
  RATFAST_INLINE V each(__m128i x) { return _mm256_broadcastsi128_si256(x); }
  RATFAST_INLINE V pick(V v, V places) { return _mm256_shuffle_epi8(v, places); }
  RATFAST_INLINE void store(V v, std::uint8_t* to, std::int64_t pitch) {
    put(_mm256_castsi256_si128(v), to);
    put(_mm256_extracti128_si256(v, 1), to + pitch);
  }
#endif
};

// Output pixel x of the rows, four input pixels at a time: the high and the low parts of the weights apart.
RATFAST_INLINE void narrow_pixel(const std::uint8_t* const* rows, const ResizeTable& columns, int x,
                                 std::uint8_t* to, std::int64_t pitch) {
  using V = Rows::V;
  const V first_two = Rows::each(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const V next_two = Rows::each(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  const V gathered = Rows::each(_mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
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
  Rows::store(Rows::pick(Rows::total(high, low), gathered), to, pitch);
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

// One row of the lower image, from the rows that it reads, two at a time. Writes whole lines, and reads none
// of the rows beyond their `bytes`.
void shorten(const std::uint8_t* rows, std::int64_t stride, std::int64_t bytes, const ResizeTable& table,
             int y, std::uint8_t* to) {
  using V = Bytes::V;
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
    for (int k = 0; k < 4; ++k) upper[k] = V{}, lower[k] = Bytes::all(kWeightHalf);
    for (int i = 0; i < count; i += 2) {
      const V first = load(i), second = i + 1 < count ? load(i + 1) : V{};
      const V low = Bytes::low(first, second), high = Bytes::high(first, second);
      const V words[4] = {Bytes::low(low, V{}), Bytes::high(low, V{}), Bytes::low(high, V{}),
                          Bytes::high(high, V{})};
      const V w = Bytes::all(pairs[i]), v = Bytes::all(pairs[i + 1]);
      for (int k = 0; k < 4; ++k) {
        upper[k] = Bytes::madd(words[k], w, upper[k]);
        lower[k] = Bytes::madd(words[k], v, lower[k]);
      }
    }
    const V line = Bytes::pack(Bytes::total(upper[0], lower[0]), Bytes::total(upper[1], lower[1]),
                               Bytes::total(upper[2], lower[2]), Bytes::total(upper[3], lower[3]));
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
