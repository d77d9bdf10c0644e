// Vectors of 256 bits. Included by leaf.cpp only, inside its anonymous namespace.
#define RATFAST_INLINE static inline __attribute__((always_inline))

RATFAST_INLINE __m128i round_to_bf16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i high = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

RATFAST_INLINE __m256 load_bf16(const char* p) {
  // Each half of the register takes four of the eight into the upper halves of its floats: one shuffle in
  // all.
  const __m128i low = _mm_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7);
  const __m128i high = _mm_setr_epi8(-1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(twice, _mm256_set_m128i(high, low)));
}

struct FloatOps {
  using A = float;
  using V = __m256;
  static constexpr int width = 8;
  RATFAST_INLINE V all(float x) { return _mm256_set1_ps(x); }
  RATFAST_INLINE V madd(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  RATFAST_INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  RATFAST_INLINE V div(V a, V b) { return _mm256_div_ps(a, b); }
  RATFAST_INLINE V square_root(V a) { return _mm256_sqrt_ps(a); }
  RATFAST_INLINE V maximum(V a, V b) {
    // max returns its second operand where either is NaN.
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  }
  RATFAST_INLINE V load(DType type, const char* p) {
    if (type == DType::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    if (type == DType::bf16) return load_bf16(p);
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  template <bool stream>
  RATFAST_INLINE void store(DType type, char* p, V v) {
    if (type == DType::f32) {
      auto* target = reinterpret_cast<float*>(p);
      stream ? _mm256_stream_ps(target, v) : _mm256_storeu_ps(target, v);
      return;
    }
    const __m128i half = type == DType::f16
                             ? _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                             : round_to_bf16(v);
    auto* target = reinterpret_cast<__m128i*>(p);
    stream ? _mm_stream_si128(target, half) : _mm_storeu_si128(target, half);
  }
};

struct DoubleOps {
  using A = double;
  using V = __m256d;
  static constexpr int width = 4;
  RATFAST_INLINE V all(double x) { return _mm256_set1_pd(x); }
  RATFAST_INLINE V madd(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
  RATFAST_INLINE V add(V a, V b) { return _mm256_add_pd(a, b); }
  RATFAST_INLINE V mul(V a, V b) { return _mm256_mul_pd(a, b); }
  RATFAST_INLINE V div(V a, V b) { return _mm256_div_pd(a, b); }
  RATFAST_INLINE V square_root(V a) { return _mm256_sqrt_pd(a); }
  RATFAST_INLINE V maximum(V a, V b) {
    return _mm256_blendv_pd(_mm256_max_pd(a, b), a, _mm256_cmp_pd(a, a, _CMP_UNORD_Q));
  }
  RATFAST_INLINE V load(DType type, const char* p) {
    if (type == DType::f64) return _mm256_loadu_pd(reinterpret_cast<const double*>(p));
    if (type == DType::f32) return _mm256_cvtps_pd(_mm_loadu_ps(reinterpret_cast<const float*>(p)));
    const __m128i half = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    if (type == DType::f16) return _mm256_cvtps_pd(_mm_cvtph_ps(half));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16)));
  }
  template <bool stream>
  RATFAST_INLINE void store(DType type, char* p, V v) {
    if (type == DType::f64) {
      auto* target = reinterpret_cast<double*>(p);
      stream ? _mm256_stream_pd(target, v) : _mm256_storeu_pd(target, v);
      return;
    }
    const __m128 single = _mm256_cvtpd_ps(v);
    if (type == DType::f32) {
      auto* target = reinterpret_cast<float*>(p);
      stream ? _mm_stream_ps(target, single) : _mm_storeu_ps(target, single);
      return;
    }
    // There is no store of 8 bytes past the caches from a vector register.
    const __m128i half = type == DType::f16
                             ? _mm_cvtps_ph(single, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                             : round_to_bf16(_mm256_castps128_ps256(single));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), half);
  }
  // As many words as doubles: they become the low halves of doubles from 2^52 on.
  RATFAST_INLINE V from_words(const std::uint32_t* p) {
    const __m256i words = _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const V offset = _mm256_set1_pd(0x1p52);
    return _mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(words), offset), offset);
  }
  // Two vectors of consecutive elements.
  RATFAST_INLINE void load_pair(DType type, const char* p, V& a, V& b) {
    if (type == DType::f64 || type == DType::f32) {
      // From memory, halves come without a shuffle.
      a = load(type, p);
      b = load(type, p + 4 * item_size(type));
      return;
    }
    const __m256 singles = FloatOps::load(type, p);
    a = _mm256_cvtps_pd(_mm256_castps256_ps128(singles));
    b = _mm256_cvtps_pd(_mm256_extractf128_ps(singles, 1));
  }
  template <bool stream>
  RATFAST_INLINE void store_pair(DType type, char* p, V a, V b) {
    if (type == DType::f64) {
      store<stream>(type, p, a);
      store<stream>(type, p + 32, b);
      return;
    }
    const __m256 low = _mm256_castps128_ps256(_mm256_cvtpd_ps(a));
    FloatOps::store<stream>(type, p, _mm256_insertf128_ps(low, _mm256_cvtpd_ps(b), 1));
  }
  // Notes where the magnitude of a value is not below the limit.
  using Flags = __m256d;
  RATFAST_INLINE Flags no_flags() { return _mm256_setzero_pd(); }
  RATFAST_INLINE Flags flag(Flags flags, V v, V limit) {
    const V magnitude = _mm256_andnot_pd(_mm256_set1_pd(-0.0), v);
    return _mm256_or_pd(flags, _mm256_cmp_pd(magnitude, limit, _CMP_NLT_UQ));
  }
  RATFAST_INLINE bool flagged(Flags flags) { return _mm256_movemask_pd(flags) != 0; }
};

// Lanes of 64 bits, the low 32 of which are a random word.
struct WordOps {
  typedef std::uint64_t W __attribute__((vector_size(32)));
  static constexpr int width = 4;
  RATFAST_INLINE W all(std::uint64_t x) { return (W)_mm256_set1_epi64x(static_cast<long long>(x)); }
  // Two words each of `width` counters from `first` on, in the order that `store` undoes.
  RATFAST_INLINE void counters(std::uint64_t first, W& low, W& high) {
    low = all(first) + W{0, 2, 1, 3};
    high = low >> 32;
  }
  RATFAST_INLINE void multiply(W a, std::uint32_t b, W& low, W& high) {
    low = (W)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
    high = low >> 32;
  }
  // Four words of every lane, lane after lane.
  RATFAST_INLINE void store(std::uint32_t* p, const W (&c)[4]) {
    const auto low = [](W a) { return a & 0xffffffffu; };
    const auto one = (__m256i)(low(c[0]) | c[1] << 32), two = (__m256i)(low(c[2]) | c[3] << 32);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_unpacklo_epi64(one, two));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), _mm256_unpackhi_epi64(one, two));
  }
};
