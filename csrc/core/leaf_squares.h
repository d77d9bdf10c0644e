// Sums of squares. Included by leaf.cpp only, inside its anonymous namespace, after leaf_mix.h.
//
// Products and sums are apart, so that every instruction set rounds alike.

template <DType type, bool whole>
RATFAST_INLINE void add_squares(const char* p, std::int64_t count, Vector* sums) {
  constexpr int pairs = kSquareLanes / kPair;
  if (whole)
    for (int line = 0; line < kSquareLanes * item_size(type); line += 64)
      __builtin_prefetch(p + kPrefetch + line);
  for (int i = 0; i < pairs; ++i, p += kPair * item_size(type), count -= kPair) {
    Vector a, b;
    if (whole)
      DoubleOps::load_pair(type, p, a, b);
    else
      load_pair_part(type, p, count, a, b);
    sums[2 * i] = DoubleOps::add(sums[2 * i], DoubleOps::mul(a, a));
    sums[2 * i + 1] = DoubleOps::add(sums[2 * i + 1], DoubleOps::mul(b, b));
  }
}

void squares(const void* data, DType given_type, std::int64_t index, std::int64_t end, double* lanes) {
  Vector sums[kSquareLanes / DoubleOps::width];
  for (auto& sum : sums) sum = DoubleOps::all(0.0);
  with_type(given_type, [&](auto known) __attribute__((always_inline)) {
    constexpr DType type = static_cast<DType>(known.value);
    const char* p = static_cast<const char*>(data) + index * item_size(type);
    std::int64_t left = end - index;
    for (; left >= kSquareLanes; left -= kSquareLanes, p += kSquareLanes * item_size(type))
      add_squares<type, true>(p, kSquareLanes, sums);
    if (left > 0) add_squares<type, false>(p, left, sums);
  });
  for (int i = 0; i < kSquareLanes / DoubleOps::width; ++i)
    DoubleOps::store<false>(DType::f64, reinterpret_cast<char*>(lanes + i * DoubleOps::width), sums[i]);
}
