// Weighted sums. Included by leaf.cpp only, inside its anonymous namespace.
//
// Sums are held in double for every element type, and multiplied and added apart: contraction is off, so that
// every instruction set rounds alike.

using Vector = DoubleOps::V;

// Loads and stores are of pairs of vectors: one vector of floats, or two of doubles.
constexpr int kPair = 2 * DoubleOps::width;
constexpr int kPairs = 4;
constexpr int kStep = kPairs * kPair;
static_assert(kStep <= kLongestStep);

// Sums of so many outputs are held in registers at a time, a pair of vectors each.
#if defined(__AVX512F__)
constexpr int kMostOutputsAtOnce = 8;
#else
constexpr int kMostOutputsAtOnce = 4;
#endif

template <int n>
struct Number {
  static constexpr int value = n;
};

// The elements [0, count) at p, the rest of the pair zero.
RATFAST_INLINE void load_pair_part(DType type, const char* p, std::int64_t count, Vector& a, Vector& b) {
  if (count >= kPair) return DoubleOps::load_pair(type, p, a, b);
  alignas(64) char padded[kPair * 8] = {};
  if (count > 0) memcpy(padded, p, static_cast<std::size_t>(count) * item_size(type));
  DoubleOps::load_pair(type, padded, a, b);
}

RATFAST_INLINE void store_pair_part(DType type, char* p, std::int64_t count, Vector a, Vector b) {
  if (count >= kPair) return DoubleOps::store_pair<false>(type, p, a, b);
  alignas(64) char padded[kPair * 8];
  DoubleOps::store_pair<false>(type, padded, a, b);
  if (count > 0) memcpy(p, padded, static_cast<std::size_t>(count) * item_size(type));
}

// Calls visit(pair, a, b) for the pairs of a step of source n from `index` on; `count` elements exist.
template <bool whole, class Visit>
RATFAST_INLINE void visit_source(const MixSegment& segment, int n, std::int64_t index, std::int64_t count,
                                 const Visit& visit) {
  const DType type = segment.source_types[n];
  const int size = item_size(type);
  const char* source = static_cast<const char*>(segment.sources[n]) + index * size;
  if (whole)
    for (int line = 0; line < kStep * size; line += 64) __builtin_prefetch(source + kPrefetch + line);
  const auto run = [&](DType known) __attribute__((always_inline)) {
    for (int u = 0; u < kPairs; ++u) {
      Vector a, b;
      const char* p = source + u * kPair * size;
      if (whole)
        DoubleOps::load_pair(known, p, a, b);
      else
        load_pair_part(known, p, count - u * kPair, a, b);
      visit(u, a, b);
    }
  };
  switch (type) {
    case DType::f32:
      run(DType::f32);
      break;
    case DType::f16:
      run(DType::f16);
      break;
    case DType::bf16:
      run(DType::bf16);
      break;
    default:
      run(DType::f64);
  }
}

template <bool whole, bool stream>
RATFAST_INLINE void store_sums(const MixSegment& segment, int k, std::int64_t index, int pair,
                               std::int64_t count, Vector a, Vector b, DoubleOps::Flags& flags) {
  const DType type = segment.output_types[k];
  char* p = static_cast<char*>(segment.outputs[k]) + (index + pair * kPair) * item_size(type);
  const Vector limit = DoubleOps::all(finite_limit(type));
  flags = DoubleOps::flag(DoubleOps::flag(flags, a, limit), b, limit);
  if (whole)
    DoubleOps::store_pair<stream>(type, p, a, b);
  else
    store_pair_part(type, p, count - pair * kPair, a, b);
}

// One output: the sums of a step stay in registers over all sources.
template <bool whole, bool stream>
RATFAST_INLINE void mix_one(const MixSegment& segment, std::int64_t index, std::int64_t count,
                            const MixWeights& weights, DoubleOps::Flags& flags) {
  Vector sums[kPairs][2];
  for (int u = 0; u < kPairs; ++u) sums[u][0] = sums[u][1] = DoubleOps::all(0);
  for (int n = 0; n < weights.sources; ++n) {
    const Vector weight = DoubleOps::all(weights.values[n]);
    visit_source<whole>(segment, n, index, count,
                        [&](int u, Vector a, Vector b) __attribute__((always_inline)) {
                          sums[u][0] = DoubleOps::add(sums[u][0], DoubleOps::mul(a, weight));
                          sums[u][1] = DoubleOps::add(sums[u][1], DoubleOps::mul(b, weight));
                        });
  }
  for (int u = 0; u < kPairs; ++u)
    store_sums<whole, stream>(segment, 0, index, u, count, sums[u][0], sums[u][1], flags);
}

// Several outputs: a step of every source is converted once, into the scratch, which stays in the first
// cache; then sums are made of as many outputs at a time as registers hold. Since all sources have been read
// by then, an output may be a source.
template <bool whole, bool stream>
RATFAST_INLINE void mix_many(const MixSegment& segment, std::int64_t index, std::int64_t count,
                             const MixWeights& weights, DoubleOps::Flags& flags) {
  constexpr int width = DoubleOps::width;
  const auto at = [](const double* p) { return reinterpret_cast<const char*>(p); };
  for (int n = 0; n < weights.sources; ++n) {
    double* values = weights.scratch + n * kStep;
    visit_source<whole>(
        segment, n, index, count, [&](int u, Vector a, Vector b) __attribute__((always_inline)) {
          DoubleOps::store_pair<false>(DType::f64, reinterpret_cast<char*>(values + u * kPair), a, b);
        });
  }
  const auto run = [&](int k, auto outputs) __attribute__((always_inline)) {
    // Whole lines of an output are written at a time: halves, taking turns, would reach the memory as halves.
    alignas(64) double staged[outputs.value * kStep];
    for (int u = 0; u < kPairs; ++u) {
      Vector sums[outputs.value][2];
      for (int j = 0; j < outputs.value; ++j) sums[j][0] = sums[j][1] = DoubleOps::all(0);
      const double* values = weights.scratch + u * kPair;
      const double* row = weights.values + k;
      for (int n = 0; n < weights.sources; ++n, values += kStep, row += weights.outputs) {
        const Vector a = DoubleOps::load(DType::f64, at(values));
        const Vector b = DoubleOps::load(DType::f64, at(values + width));
        for (int j = 0; j < outputs.value; ++j) {
          const Vector weight = DoubleOps::all(row[j]);
          sums[j][0] = DoubleOps::add(sums[j][0], DoubleOps::mul(a, weight));
          sums[j][1] = DoubleOps::add(sums[j][1], DoubleOps::mul(b, weight));
        }
      }
      for (int j = 0; j < outputs.value; ++j)
        DoubleOps::store_pair<false>(DType::f64, reinterpret_cast<char*>(staged + j * kStep + u * kPair),
                                     sums[j][0], sums[j][1]);
    }
    for (int j = 0; j < outputs.value; ++j) {
      for (int u = 0; u < kPairs; ++u) {
        const double* values = staged + j * kStep + u * kPair;
        store_sums<whole, stream>(segment, k + j, index, u, count, DoubleOps::load(DType::f64, at(values)),
                                  DoubleOps::load(DType::f64, at(values + width)), flags);
      }
    }
    return k + outputs.value;
  };
  int k = 0;
  while (k + kMostOutputsAtOnce <= weights.outputs) k = run(k, Number<kMostOutputsAtOnce>{});
  if (kMostOutputsAtOnce > 4 && k + 4 <= weights.outputs) k = run(k, Number<4>{});
  if (k + 2 <= weights.outputs) k = run(k, Number<2>{});
  if (k < weights.outputs) run(k, Number<1>{});
}

template <bool stream, bool many>
std::int64_t mix_whole_steps(const MixSegment& segment, std::int64_t index, std::int64_t end,
                             const MixWeights& weights, DoubleOps::Flags& flags) {
  for (; index + kStep <= end; index += kStep) {
    if (many)
      mix_many<true, stream>(segment, index, kStep, weights, flags);
    else
      mix_one<true, stream>(segment, index, kStep, weights, flags);
  }
  return index;
}

// Elements from `begin` to the first one where all outputs lie on a line of 64 bytes, or -1 if there is none
// within a step.
std::int64_t to_aligned(const MixSegment& segment, std::int64_t begin, int outputs) {
  for (std::int64_t skip = 0; skip < kLongestStep; ++skip) {
    bool aligned = true;
    for (int k = 0; k < outputs; ++k) {
      const auto address = reinterpret_cast<std::uintptr_t>(segment.outputs[k]) +
                           static_cast<std::uintptr_t>((begin + skip) * item_size(segment.output_types[k]));
      aligned = aligned && address % 64 == 0;
    }
    if (aligned) return skip;
  }
  return -1;
}

bool mix(const MixSegment& segment, std::int64_t begin, std::int64_t end, const MixWeights& given) {
  const MixWeights weights = given;  // a copy that no store can alias
  const bool many = weights.outputs > 1;
  DoubleOps::Flags flags = DoubleOps::no_flags();
  const auto parts = [&](std::int64_t index, std::int64_t until) {
    for (; index < until; index += kStep) {
      const std::int64_t count = until - index < kStep ? until - index : kStep;
      if (many)
        mix_many<false, false>(segment, index, count, weights, flags);
      else
        mix_one<false, false>(segment, index, count, weights, flags);
    }
  };
  std::int64_t index = begin;
  const std::int64_t skip = weights.stream ? to_aligned(segment, begin, weights.outputs) : -1;
  if (skip >= 0 && begin + skip + kStep <= end) {
    parts(begin, begin + skip);
    index = begin + skip;
    index = many ? mix_whole_steps<true, true>(segment, index, end, weights, flags)
                 : mix_whole_steps<true, false>(segment, index, end, weights, flags);
#if defined(__SSE2__)
    __builtin_ia32_sfence();
#endif
  } else {
    index = many ? mix_whole_steps<false, true>(segment, index, end, weights, flags)
                 : mix_whole_steps<false, false>(segment, index, end, weights, flags);
  }
  parts(index, end);
  return !DoubleOps::flagged(flags);
}
