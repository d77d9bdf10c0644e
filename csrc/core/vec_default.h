// Vectors of 128 bits in the compiler's own notation, for every machine. Included by leaf.cpp only, inside
// its anonymous namespace. Where the baseline has no fused multiply-add (x86-64), madd rounds twice: an exact
// one in software would be slower by an order of magnitude, on machines that are hardly there any more.
// Elsewhere it is asked for by name, since contraction is off.
#define RATFAST_INLINE static inline __attribute__((always_inline))

template <class Scalar, int lanes>
struct PortableOps {
  using A = Scalar;
  typedef Scalar V __attribute__((vector_size(sizeof(Scalar) * lanes)));
  static constexpr int width = lanes;
  RATFAST_INLINE V all(Scalar x) { return V{} + x; }
  RATFAST_INLINE V madd(V a, V b, V c) {
#if defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)
    for (int i = 0; i < lanes; ++i)
      c[i] = sizeof(Scalar) == 4 ? __builtin_fmaf(a[i], b[i], c[i]) : __builtin_fma(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
  }
  RATFAST_INLINE V add(V a, V b) { return a + b; }
  RATFAST_INLINE V mul(V a, V b) { return a * b; }
  RATFAST_INLINE V div(V a, V b) { return a / b; }
  RATFAST_INLINE V square_root(V a) {
    for (int i = 0; i < lanes; ++i) a[i] = sizeof(Scalar) == 4 ? __builtin_sqrtf(a[i]) : __builtin_sqrt(a[i]);
    return a;
  }
  RATFAST_INLINE V maximum(V a, V b) { return (a > b) | (a != a) ? a : b; }
  RATFAST_INLINE V load(DType type, const char* p) {
    V v;
    if (type == (sizeof(Scalar) == 4 ? DType::f32 : DType::f64)) {
      memcpy(&v, p, sizeof(V));
      return v;
    }
    for (int i = 0; i < lanes; ++i) {
      if (type == DType::f32) {
        float x;
        memcpy(&x, p + 4 * i, 4);
        v[i] = x;
      } else {
        std::uint16_t x;
        memcpy(&x, p + 2 * i, 2);
        v[i] = type == DType::f16 ? f16_to_float(x) : bf16_to_float(x);
      }
    }
    return v;
  }
  template <bool stream>
  RATFAST_INLINE void store(DType type, char* p, V v) {
    if (type == (sizeof(Scalar) == 4 ? DType::f32 : DType::f64)) {
      memcpy(p, &v, sizeof(V));
      return;
    }
    for (int i = 0; i < lanes; ++i) {
      const float x = static_cast<float>(v[i]);
      if (type == DType::f32) {
        memcpy(p + 4 * i, &x, 4);
      } else {
        const std::uint16_t half = type == DType::f16 ? float_to_f16(x) : float_to_bf16(x);
        memcpy(p + 2 * i, &half, 2);
      }
    }
  }
  // As many words as there are lanes.
  RATFAST_INLINE V from_words(const std::uint32_t* p) {
    V v;
    for (int i = 0; i < lanes; ++i) v[i] = static_cast<Scalar>(p[i]);
    return v;
  }
  // Two vectors of consecutive elements.
  RATFAST_INLINE void load_pair(DType type, const char* p, V& a, V& b) {
    a = load(type, p);
    b = load(type, p + lanes * item_size(type));
  }
  template <bool stream>
  RATFAST_INLINE void store_pair(DType type, char* p, V a, V b) {
    store<stream>(type, p, a);
    store<stream>(type, p + lanes * item_size(type), b);
  }
  // Notes where the magnitude of a value is not below the limit.
  using Flags = bool;
  RATFAST_INLINE Flags no_flags() { return false; }
  RATFAST_INLINE Flags flag(Flags flags, V v, V limit) {
    for (int i = 0; i < lanes; ++i) flags |= !((v[i] < 0 ? -v[i] : v[i]) < limit[i]);
    return flags;
  }
  RATFAST_INLINE bool flagged(Flags flags) { return flags; }
};

using FloatOps = PortableOps<float, 4>;
using DoubleOps = PortableOps<double, 2>;

// Lanes of 64 bits, the low 32 of which are a random word.
struct WordOps {
  typedef std::uint64_t W __attribute__((vector_size(16)));
  static constexpr int width = 2;
  RATFAST_INLINE W all(std::uint64_t x) { return W{x, x}; }
  // Two words each of `width` counters from `first` on.
  RATFAST_INLINE void counters(std::uint64_t first, W& low, W& high) {
    low = W{first, first + 1};
    high = low >> 32;
  }
  RATFAST_INLINE void multiply(W a, std::uint32_t b, W& low, W& high) {
    low = (a & 0xffffffffu) * b;
    high = low >> 32;
  }
  // Four words of every lane, lane after lane.
  RATFAST_INLINE void store(std::uint32_t* p, const W (&c)[4]) {
    for (int lane = 0; lane < width; ++lane)
      for (int i = 0; i < 4; ++i) p[lane * 4 + i] = static_cast<std::uint32_t>(c[i][lane]);
  }
};
