// From packed pixels to the output's numbers. Included by image_leaf.cpp only, inside its anonymous
// namespace.

// Pixels of four bytes become pixels of three, in place.
RATFAST_INLINE void pack_row(std::uint8_t* row, std::int64_t pitch) {
#if defined(__AVX2__)
  const __m128i places = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  std::uint8_t* to = row;
  for (std::int64_t at = 0; at < pitch; at += 16, to += 12) {  // the next one covers the last four bytes
    const __m128i pixels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + at));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(pixels, places));
  }
#else
  for (std::int64_t x = 0; x < pitch / 4; ++x) {
    std::uint32_t pixel;
    memcpy(&pixel, row + 4 * x, 4);
    memcpy(row + 3 * x, &pixel, 4);
  }
#endif
}

// Bytes as floats. The compiler takes detours over halves of vectors.
RATFAST_INLINE Vector<float, kLanes> widen(const std::uint8_t* bytes) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))));
#else
  Vector<std::uint8_t, kLanes> narrow;
  memcpy(&narrow, bytes, sizeof(narrow));
  return __builtin_convertvector(__builtin_convertvector(narrow, Vector<int, kLanes>), Vector<float, kLanes>);
#endif
}

// Rounds to nearest even, NaN to one NaN, as float_to_bf16 does.
RATFAST_INLINE void put(Vector<float, kLanes> values, std::uint16_t* to) {
  using Bits = Vector<std::uint32_t, kLanes>;
  Bits bits;
  memcpy(&bits, &values, sizeof(bits));
  const Bits rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Bits safe = (bits & 0x7fffffffu) > 0x7f800000u ? Bits{} + 0x7fc0u : rounded;
  const auto half = __builtin_convertvector(safe, Vector<std::uint16_t, kLanes>);
  memcpy(to, &half, sizeof(half));
}
RATFAST_INLINE void put(Vector<float, kLanes> values, float* to) { memcpy(to, &values, sizeof(values)); }

RATFAST_INLINE void put(float value, std::uint16_t* to) { *to = float_to_bf16(value); }
RATFAST_INLINE void put(float value, float* to) { *to = value; }

// Three vectors at a time, after which the channels come in the same order again.
template <class Number>
RATFAST_INLINE void scale_values(const std::uint8_t* from, std::int64_t count, const float* scale,
                                 const float* shift, Number* to) {
  using Values = Vector<float, kLanes>;
  Values scales[3], shifts[3];
  for (int i = 0; i < 3 * kLanes; ++i) {
    scales[i / kLanes][i % kLanes] = scale[i % 3];
    shifts[i / kLanes][i % kLanes] = shift[i % 3];
  }
  std::int64_t at = 0;
  for (; at + 3 * kLanes <= count; at += 3 * kLanes) {
    for (int k = 0; k < 3; ++k)
      put(widen(from + at + k * kLanes) * scales[k] + shifts[k], to + at + k * kLanes);
  }
  for (; at < count; ++at) put(static_cast<float>(from[at]) * scale[at % 3] + shift[at % 3], to + at);
}

// Values [first, first + count) of the target from as many bytes, the first of them red.
void normalise(const std::uint8_t* from, const ImageTarget& target, std::int64_t first, std::int64_t count) {
  if (target.type == ImageType::f32)
    scale_values(from, count, target.scale, target.shift, static_cast<float*>(target.data) + first);
  else
    scale_values(from, count, target.scale, target.shift, static_cast<std::uint16_t*>(target.data) + first);
}
