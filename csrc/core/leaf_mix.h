// Weighted sums. Included by leaf.cpp only, inside its anonymous namespace.
//
// Sums are held in double for every element type, and multiplied and added apart: contraction is off, so that
// every instruction set rounds alike. Tensors are walked in steps of a few lines, each source's step after
// the other's, so that sums stay in registers; all sources of a step are read before any output of it is
// written, since an output may be a source.

using Vector = DoubleOps::V;

// Stores are of pairs of vectors: one vector of floats, or two of doubles.
constexpr int kPair = 2 * DoubleOps::width;
#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 8;
#endif
constexpr int kStep = kVectors * DoubleOps::width;
static_assert(kStep <= kLongestStep);

// Of so many outputs the sums of so many vectors are held in registers at a time.
#if defined(__AVX512F__)
constexpr int kMostOutputsAtOnce = 8;
constexpr int vectors_at_once(int outputs) { return outputs == 8 ? 2 : 4; }
#else
constexpr int kMostOutputsAtOnce = 4;
constexpr int vectors_at_once(int outputs) { return 8 / outputs; }
#endif

// Bytes of every source asked for ahead of the loads: what is on its way between the memory and two cores.
// Farther ahead is slower, since pages are small.
constexpr int kSourceAhead = 1024;

// Where sources are read a few at a time: how many, and elements of a block, whose sums stay in the first
// cache; they are asked for a block ahead.
constexpr int kFewSources = 4;
constexpr int kSumBlock = 2048;
static_assert(kSumBlock % kStep == 0);

template <int n>
struct Number {
  static constexpr int value = n;
};

// Stands for sources of several element types.
constexpr int kMixed = 4;

RATFAST_INLINE void store_pair_part(DType type, char* p, std::int64_t count, Vector a, Vector b) {
  if (count >= kPair) return DoubleOps::store_pair<false>(type, p, a, b);
  alignas(64) char padded[kPair * 8];
  DoubleOps::store_pair<false>(type, padded, a, b);
  if (count > 0) memcpy(p, padded, static_cast<std::size_t>(count) * item_size(type));
}

// Calls visit(type) with a constant for the type, so that what it does is compiled once for each.
template <class Visit>
RATFAST_INLINE void with_type(DType type, const Visit& visit) {
  switch (type) {
    case DType::f32:
      return visit(Number<static_cast<int>(DType::f32)>{});
    case DType::f16:
      return visit(Number<static_cast<int>(DType::f16)>{});
    case DType::bf16:
      return visit(Number<static_cast<int>(DType::bf16)>{});
    default:
      return visit(Number<static_cast<int>(DType::f64)>{});
  }
}

// Elements of 16 bits become floats in memory first: vectors of doubles are quicker made of floats in memory
// than of the halves of a register.
template <DType type, int vectors>
RATFAST_INLINE void load_vectors(const char* p, Vector (&values)[vectors]) {
  constexpr bool shorter = item_size(type) == 2;
  constexpr DType wide = shorter ? DType::f32 : type;
  alignas(64) char singles[shorter ? vectors * DoubleOps::width * 4 : 1];
  if constexpr (shorter) {
    for (int i = 0; i < vectors * DoubleOps::width; i += FloatOps::width)
      FloatOps::store<false>(wide, singles + i * 4, FloatOps::load(type, p + i * 2));
    p = singles;
  }
  for (int i = 0; i < vectors; ++i)
    values[i] = DoubleOps::load(wide, p + i * DoubleOps::width * item_size(wide));
}

// Loads vectors of source n, from vector i of the step at `index` on, and asks for what comes later. `kind`
// is the type of all sources, or kMixed.
template <int kind, bool few, int vectors>
RATFAST_INLINE void load_source(const MixSegment& segment, int n, std::int64_t index, int i,
                                Vector (&values)[vectors]) {
  const auto run = [&](auto known) __attribute__((always_inline)) {
    constexpr DType type = static_cast<DType>(known.value);
    constexpr int size = item_size(type);
    constexpr int bytes = vectors * DoubleOps::width * size;
    const int start = i * DoubleOps::width * size;
    const char* source = static_cast<const char*>(segment.sources[n]) + index * size + start;
    // A line is asked for once, with its first part.
    if (bytes >= 64 || start % 64 == 0)
      for (int line = 0; line < bytes; line += 64)
        few ? __builtin_prefetch(source + kSumBlock * size + line, 0, 3)
            : __builtin_prefetch(source + kSourceAhead + line, 0, 2);
    load_vectors<type>(source, values);
  };
  if constexpr (kind == kMixed)
    with_type(segment.source_types[n], run);
  else
    run(Number<kind>{});
}

RATFAST_INLINE void keep(double* p, Vector v) {
  DoubleOps::store<false>(DType::f64, reinterpret_cast<char*>(p), v);
}

RATFAST_INLINE Vector kept(const double* p) {
  return DoubleOps::load(DType::f64, reinterpret_cast<const char*>(p));
}

// The sums of a step of output k, on their way to it.
RATFAST_INLINE double* staged(const MixWeights& weights, int k) {
  return weights.scratch + (weights.sources + k) * kStep;
}

template <int outputs, int vectors>
RATFAST_INLINE void add_weighted(Vector (&sums)[outputs][vectors], const Vector (&values)[vectors],
                                 const double* weights) {
  for (int j = 0; j < outputs; ++j) {
    const Vector weight = DoubleOps::all(weights[j]);
    for (int i = 0; i < vectors; ++i)
      sums[j][i] = DoubleOps::add(sums[j][i], DoubleOps::mul(values[i], weight));
  }
}

// Stores a step of sums of output k, of which `count` elements are there.
RATFAST_INLINE void store_sums(const MixSegment& segment, int k, std::int64_t index, std::int64_t count,
                               const MixWeights& weights, const double* stored, DoubleOps::Flags& flags) {
  with_type(segment.output_types[k], [&](auto known) __attribute__((always_inline)) {
    constexpr DType type = static_cast<DType>(known.value);
    constexpr int bytes = kPair * item_size(type);
    char* p = static_cast<char*>(segment.outputs[k]) + index * item_size(type);
    const Vector limit = DoubleOps::all(finite_limit(type));
    Vector sums[kVectors];
    for (int i = 0; i < kVectors; ++i) sums[i] = kept(stored + i * DoubleOps::width);
    for (int i = 0; i < kVectors; ++i) flags = DoubleOps::flag(flags, sums[i], limit);
    if (count < kStep) {
      for (int i = 0; i < kVectors; i += 2, p += bytes)
        store_pair_part(type, p, count - i / 2 * kPair, sums[i], sums[i + 1]);
    } else if (weights.stream[k] && reinterpret_cast<std::uintptr_t>(p) % 64 == 0) {
      for (int i = 0; i < kVectors; i += 2, p += bytes)
        DoubleOps::store_pair<true>(type, p, sums[i], sums[i + 1]);
    } else {
      for (int i = 0; i < kVectors; i += 2, p += bytes)
        DoubleOps::store_pair<false>(type, p, sums[i], sums[i + 1]);
    }
  });
}

// One output, of [index, end), a multiple of kStep. If `few`, sources are read a few at a time, a block of
// each, and the sums are held in memory meanwhile.
template <int kind, bool few>
void mix_one(const MixSegment& given_segment, std::int64_t index, std::int64_t end,
             const MixWeights& given_weights, DoubleOps::Flags& flags) {
  const MixSegment segment = given_segment;  // copies that no store can alias
  const MixWeights weights = given_weights;
  alignas(64) double block[few ? kSumBlock : kStep];
  DoubleOps::Flags seen = flags;
  const int at_once = few ? kFewSources : weights.sources;
  while (index < end) {
    const std::int64_t length = few ? kSumBlock : kStep;
    const std::int64_t count = end - index < length ? end - index : length;
    int first = 0;
    do {
      const int last = weights.sources - first < at_once ? weights.sources : first + at_once;
      for (std::int64_t at = 0; at < count; at += kStep) {
        double* held = block + at;
        Vector sums[1][kVectors];
        for (int i = 0; i < kVectors; ++i)
          sums[0][i] = first > 0 ? kept(held + i * DoubleOps::width) : DoubleOps::all(0);
        for (int n = first; n < last; ++n) {
          Vector values[kVectors];
          load_source<kind, few>(segment, n, index + at, 0, values);
          add_weighted(sums, values, weights.values + n);
        }
        for (int i = 0; i < kVectors; ++i) keep(held + i * DoubleOps::width, sums[0][i]);
        if (last == weights.sources) store_sums(segment, 0, index + at, kStep, weights, held, seen);
      }
      first = last;
    } while (first < weights.sources);
    index += count;
  }
  flags = seen;
}

// A part of a step, from vector i on, of `outputs` sums from output k on: as many vectors as registers hold.
// load(n, values) brings those of source n.
template <int outputs, class Load>
RATFAST_INLINE void sum_part(const MixWeights& weights, int k, int i, const Load& load) {
  constexpr int vectors = vectors_at_once(outputs);
  Vector sums[outputs][vectors];
  for (int j = 0; j < outputs; ++j)
    for (int v = 0; v < vectors; ++v) sums[j][v] = DoubleOps::all(0);
  const double* row = weights.values + k;
  for (int n = 0; n < weights.sources; ++n, row += weights.outputs) {
    Vector values[vectors];
    load(n, values);
    add_weighted(sums, values, row);
  }
  double* to = staged(weights, k) + i * DoubleOps::width;
  for (int j = 0; j < outputs; ++j)
    for (int v = 0; v < vectors; ++v) keep(to + j * kStep + v * DoubleOps::width, sums[j][v]);
}

// The same from the scratch.
template <int outputs>
RATFAST_INLINE void sum_scratch(const MixWeights& weights, int k, int i) {
  sum_part<outputs>(weights, k, i, [&](int n, auto& values) __attribute__((always_inline)) {
    const double* from = weights.scratch + n * kStep + i * DoubleOps::width;
    for (Vector& v : values) {
      v = kept(from);
      from += DoubleOps::width;
    }
  });
}

// Calls visit(number, k) for outputs from k on, as many at a time as registers hold.
template <class Visit>
RATFAST_INLINE void by_outputs(int k, int outputs, const Visit& visit) {
  for (; outputs - k >= kMostOutputsAtOnce; k += kMostOutputsAtOnce) visit(Number<kMostOutputsAtOnce>{}, k);
  if (kMostOutputsAtOnce > 4 && outputs - k >= 4) {
    visit(Number<4>{}, k);
    k += 4;
  }
  if (outputs - k >= 2) {
    visit(Number<2>{}, k);
    k += 2;
  }
  if (k < outputs) visit(Number<1>{}, k);
}

// Outputs from k on of a step whose sources lie in the scratch.
void mix_scratch(const MixSegment& segment, int from, std::int64_t index, std::int64_t count,
                 const MixWeights& given, DoubleOps::Flags& flags) {
  const MixWeights weights = given;  // a copy that no store can alias
  by_outputs(from, weights.outputs, [&](auto number, int k) __attribute__((always_inline)) {
    for (int i = 0; i < kVectors; i += vectors_at_once(number.value))
      sum_scratch<number.value>(weights, k, i);
  });
  for (int k = from; k < weights.outputs; ++k)
    store_sums(segment, k, index, count, weights, staged(weights, k), flags);
}

// A step of several outputs. The first sums are made of the sources themselves, which become doubles in the
// scratch for the others: that stays in the first cache whatever the sources' addresses. Part by part, so
// that reading and computing take turns as often as can be. Whole lines of an output are written at a time:
// halves, taking turns, would reach the memory as halves.
template <int kind, int outputs>
RATFAST_INLINE void mix_step(const MixSegment& segment, std::int64_t index, const MixWeights& weights,
                             DoubleOps::Flags& flags) {
  const bool others = weights.outputs > outputs;
  const int full = weights.outputs / outputs * outputs;
  for (int i = 0; i < kVectors; i += vectors_at_once(outputs)) {
    sum_part<outputs>(weights, 0, i, [&](int n, auto& values) __attribute__((always_inline)) {
      load_source<kind, false>(segment, n, index, i, values);
      if (!others) return;
      double* to = weights.scratch + n * kStep + i * DoubleOps::width;
      for (const Vector& v : values) {
        keep(to, v);
        to += DoubleOps::width;
      }
    });
    for (int k = outputs; k < full; k += outputs) sum_scratch<outputs>(weights, k, i);
  }
  for (int k = 0; k < full; ++k) store_sums(segment, k, index, kStep, weights, staged(weights, k), flags);
  if (full < weights.outputs) mix_scratch(segment, full, index, kStep, weights, flags);
}

// Several outputs, of [index, end), a multiple of kStep.
template <int kind, int outputs>
void mix_many(const MixSegment& given_segment, std::int64_t index, std::int64_t end,
              const MixWeights& given_weights, DoubleOps::Flags& flags) {
  const MixSegment segment = given_segment;  // copies that no store can alias
  const MixWeights weights = given_weights;
  DoubleOps::Flags seen = flags;
  for (; index < end; index += kStep) mix_step<kind, outputs>(segment, index, weights, seen);
  flags = seen;
}

template <int kind>
void mix_whole(const MixSegment& segment, std::int64_t index, std::int64_t end, const MixWeights& weights,
               DoubleOps::Flags& flags) {
  if (weights.outputs >= kMostOutputsAtOnce)
    mix_many<kind, kMostOutputsAtOnce>(segment, index, end, weights, flags);
  else if (weights.outputs >= 4)
    mix_many<kind, 4>(segment, index, end, weights, flags);
  else if (weights.outputs >= 2)
    mix_many<kind, 2>(segment, index, end, weights, flags);
  else if (weights.few_sources_at_once)
    mix_one<kind, true>(segment, index, end, weights, flags);
  else
    mix_one<kind, false>(segment, index, end, weights, flags);
}

// The elements before and after the whole steps.
void mix_part(const MixSegment& segment, std::int64_t index, std::int64_t end, const MixWeights& weights,
              DoubleOps::Flags& flags) {
  for (; index < end; index += kStep) {
    const std::int64_t count = end - index < kStep ? end - index : kStep;
    for (int n = 0; n < weights.sources; ++n) {
      with_type(segment.source_types[n], [&](auto known) __attribute__((always_inline)) {
        constexpr DType type = static_cast<DType>(known.value);
        alignas(64) char padded[kStep * item_size(type)] = {};
        memcpy(padded, static_cast<const char*>(segment.sources[n]) + index * item_size(type),
               static_cast<std::size_t>(count) * item_size(type));
        Vector values[kVectors];
        load_vectors<type>(padded, values);
        memcpy(weights.scratch + n * kStep, values, sizeof(values));
      });
    }
    mix_scratch(segment, 0, index, count, weights, flags);
  }
}

// Elements from `begin` to the first one where an output that is to be streamed lies on a line of 64 bytes.
std::int64_t to_line(const MixSegment& segment, std::int64_t begin, const MixWeights& weights) {
  for (int k = 0; k < weights.outputs; ++k) {
    if (!weights.stream[k]) continue;
    const int size = item_size(segment.output_types[k]);
    const auto address =
        reinterpret_cast<std::uintptr_t>(segment.outputs[k]) + static_cast<std::uintptr_t>(begin * size);
    if (address % static_cast<std::uintptr_t>(size) == 0)
      return static_cast<std::int64_t>(-address % 64) / size;
  }
  return 0;
}

bool mix(const MixSegment& segment, std::int64_t begin, std::int64_t end, const MixWeights& weights) {
  DoubleOps::Flags flags = DoubleOps::no_flags();
  const std::int64_t skip = to_line(segment, begin, weights);
  const std::int64_t from = end - begin < skip ? end : begin + skip;
  const std::int64_t until = from + (end - from) / kStep * kStep;
  mix_part(segment, begin, from, weights, flags);
  bool alike = true;
  for (int n = 1; n < weights.sources; ++n)
    alike = alike && segment.source_types[n] == segment.source_types[0];
  if (alike && weights.sources > 0)
    with_type(segment.source_types[0],
              [&](auto known) { mix_whole<known.value>(segment, from, until, weights, flags); });
  else
    mix_whole<kMixed>(segment, from, until, weights, flags);
  mix_part(segment, until, end, weights, flags);
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
  return !DoubleOps::flagged(flags);
}
