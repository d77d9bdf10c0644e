// Vectors of 512 bits. Included by leaf.cpp only, inside its anonymous namespace.
#define RATFAST_INLINE static inline __attribute__((always_inline))

RATFAST_INLINE __m256i round_to_bf16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i high = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(high);
}

RATFAST_INLINE __m512 from_bf16(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

struct FloatOps {
  using A = float;
  using V = __m512;
  static constexpr int width = 16;
  RATFAST_INLINE V all(float x) { return _mm512_set1_ps(x); }
  RATFAST_INLINE V madd(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  RATFAST_INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  RATFAST_INLINE V div(V a, V b) { return _mm512_div_ps(a, b); }
  RATFAST_INLINE V square_root(V a) { return _mm512_sqrt_ps(a); }
  RATFAST_INLINE V maximum(V a, V b) {
    // max returns its second operand where either is NaN.
    return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
  }
  RATFAST_INLINE V load(DType type, const char* p) {
    if (type == DType::f32) return _mm512_loadu_ps(p);
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return type == DType::f16 ? _mm512_cvtph_ps(half) : from_bf16(half);
  }
  template <bool stream>
  RATFAST_INLINE void store(DType type, char* p, V v) {
    if (type == DType::f32) {
      stream ? _mm512_stream_ps(reinterpret_cast<float*>(p), v) : _mm512_storeu_ps(p, v);
      return;
    }
    const __m256i half = type == DType::f16
                             ? _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                             : round_to_bf16(v);
    auto* target = reinterpret_cast<__m256i*>(p);
    stream ? _mm256_stream_si256(target, half) : _mm256_storeu_si256(target, half);
  }
};

struct DoubleOps {
  using A = double;
  using V = __m512d;
  static constexpr int width = 8;
  RATFAST_INLINE V all(double x) { return _mm512_set1_pd(x); }
  RATFAST_INLINE V madd(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
  RATFAST_INLINE V add(V a, V b) { return _mm512_add_pd(a, b); }
  RATFAST_INLINE V mul(V a, V b) { return _mm512_mul_pd(a, b); }
  RATFAST_INLINE V div(V a, V b) { return _mm512_div_pd(a, b); }
  RATFAST_INLINE V square_root(V a) { return _mm512_sqrt_pd(a); }
  RATFAST_INLINE V maximum(V a, V b) {
    return _mm512_mask_mov_pd(_mm512_max_pd(a, b), _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q), a);
  }
  RATFAST_INLINE V load(DType type, const char* p) {
    if (type == DType::f64) return _mm512_loadu_pd(p);
    if (type == DType::f32) return _mm512_cvtps_pd(_mm256_loadu_ps(reinterpret_cast<const float*>(p)));
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if (type == DType::f16) return _mm512_cvtps_pd(_mm256_cvtph_ps(half));
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)));
  }
  template <bool stream>
  RATFAST_INLINE void store(DType type, char* p, V v) {
    if (type == DType::f64) {
      stream ? _mm512_stream_pd(reinterpret_cast<double*>(p), v) : _mm512_storeu_pd(p, v);
      return;
    }
    const __m256 single = _mm512_cvtpd_ps(v);
    if (type == DType::f32) {
      auto* target = reinterpret_cast<float*>(p);
      stream ? _mm256_stream_ps(target, single) : _mm256_storeu_ps(target, single);
      return;
    }
    const __m128i half = type == DType::f16
                             ? _mm256_cvtps_ph(single, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                             : _mm256_castsi256_si128(round_to_bf16(_mm512_castps256_ps512(single)));
    auto* target = reinterpret_cast<__m128i*>(p);
    stream ? _mm_stream_si128(target, half) : _mm_storeu_si128(target, half);
  }
  // As many words as doubles.
  RATFAST_INLINE V from_words(const std::uint32_t* p) {
    return _mm512_cvtepu32_pd(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  // Two vectors of consecutive elements.
  RATFAST_INLINE void load_pair(DType type, const char* p, V& a, V& b) {
    if (type == DType::f64) {
      a = load(type, p);
      b = load(type, p + 64);
      return;
    }
    const __m512 singles = FloatOps::load(type, p);
    a = _mm512_cvtps_pd(_mm512_castps512_ps256(singles));
    b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(singles, 1));
  }
  template <bool stream>
  RATFAST_INLINE void store_pair(DType type, char* p, V a, V b) {
    if (type == DType::f64) {
      store<stream>(type, p, a);
      store<stream>(type, p + 64, b);
      return;
    }
    const __m512 low = _mm512_castps256_ps512(_mm512_cvtpd_ps(a));
    FloatOps::store<stream>(type, p, _mm512_insertf32x8(low, _mm512_cvtpd_ps(b), 1));
  }
  // Notes where the magnitude of a value is not below the limit.
  using Flags = __mmask8;
  RATFAST_INLINE Flags no_flags() { return 0; }
  RATFAST_INLINE Flags flag(Flags flags, V v, V limit) {
    return flags | _mm512_cmp_pd_mask(_mm512_abs_pd(v), limit, _CMP_NLT_UQ);
  }
  RATFAST_INLINE bool flagged(Flags flags) { return flags != 0; }
};

// Lanes of 64 bits, the low 32 of which are a random word.
struct WordOps {
  typedef std::uint64_t W __attribute__((vector_size(64)));
  static constexpr int width = 8;
  RATFAST_INLINE W all(std::uint64_t x) { return (W)_mm512_set1_epi64(static_cast<long long>(x)); }
  // Two words each of `width` counters from `first` on, in the order that `store` undoes.
  RATFAST_INLINE void counters(std::uint64_t first, W& low, W& high) {
    low = all(first) + W{0, 4, 1, 5, 2, 6, 3, 7};
    high = low >> 32;
  }
  RATFAST_INLINE void multiply(W a, std::uint32_t b, W& low, W& high) {
    low = (W)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
    high = low >> 32;
  }
  // Four words of every lane, lane after lane.
  RATFAST_INLINE void store(std::uint32_t* p, const W (&c)[4]) {
    const auto low = [](W a) { return a & 0xffffffffu; };
    const auto one = (__m512i)(low(c[0]) | c[1] << 32), two = (__m512i)(low(c[2]) | c[3] << 32);
    _mm512_storeu_si512(p, _mm512_unpacklo_epi64(one, two));
    _mm512_storeu_si512(p + 16, _mm512_unpackhi_epi64(one, two));
  }
};
