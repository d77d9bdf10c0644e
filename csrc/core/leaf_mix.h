// Weighted sums. Included by leaf.cpp only, inside its anonymous namespace.
//
// Sums are held in double for every element type, and multiplied and added apart: contraction is off, so that
// every instruction set rounds alike.

using Vector = DoubleOps::V;

// Stores are of pairs of vectors: one vector of floats, or two of doubles.
constexpr int kPair = 2 * DoubleOps::width;
constexpr int kPairs = 4;
constexpr int kVectors = 2 * kPairs;
constexpr int kStep = kPairs * kPair;
static_assert(kLongestBlock % kStep == 0);

// Of every source so many bytes are read in a row, and asked for a block ahead: the memory is slow to serve
// a few lines each of many sources in turn.
constexpr int kScratchBytes = 5 << 10;  // of all sources together, to stay in the first cache
constexpr int kSumBlock = 2048;         // elements: their sums stay in the first cache
constexpr int kSourcesAtOnce = 4;

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

// The `count` elements at `source`, as a step of `wide`: of doubles, or of floats unless they are doubles.
// The rest are zero.
template <bool whole, DType type>
RATFAST_INLINE void widen(const char* source, std::int64_t count, DType wide, char* values) {
  const auto run = [&](auto ops, DType target) __attribute__((always_inline)) {
    using Ops = decltype(ops);
    for (int i = 0; i < kStep; i += Ops::width) {
      const char* p = source + i * item_size(type);
      const auto v = whole ? Ops::load(type, p) : load_part<Ops>(type, p, count - i);
      Ops::template store<false>(target, values + i * item_size(target), v);
    }
  };
  if (wide == DType::f64)
    run(DoubleOps{}, DType::f64);
  else if (type != DType::f64)
    run(FloatOps{}, DType::f32);
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

// Calls visit(type, source) for the elements of source n from `index` on, and asks for those of a step that
// lie `ahead` elements ahead.
template <bool whole, class Visit>
RATFAST_INLINE void visit_source(const MixSegment& segment, int n, std::int64_t index, int ahead,
                                 const Visit& visit) {
  const DType type = segment.source_types[n];
  const int size = item_size(type);
  const char* source = static_cast<const char*>(segment.sources[n]) + index * size;
  with_type(type, [&](auto known) __attribute__((always_inline)) {
    constexpr int bytes = kStep * item_size(static_cast<DType>(known.value));
    if (whole)
      for (int line = 0; line < bytes; line += 64) __builtin_prefetch(source + ahead * size + line);
    visit(known, source);
  });
}

// Stores a step of sums of output k.
template <bool whole, bool stream>
RATFAST_INLINE void store_sums(const MixSegment& segment, int k, std::int64_t index, std::int64_t count,
                               const Vector* sums, DoubleOps::Flags& flags) {
  with_type(segment.output_types[k], [&](auto known) __attribute__((always_inline)) {
    constexpr DType type = static_cast<DType>(known.value);
    char* p = static_cast<char*>(segment.outputs[k]) + index * item_size(type);
    const Vector limit = DoubleOps::all(finite_limit(type));
    for (int i = 0; i < kVectors; ++i) flags = DoubleOps::flag(flags, sums[i], limit);
    for (int u = 0; u < kPairs; ++u, p += kPair * item_size(type)) {
      if (whole)
        DoubleOps::store_pair<stream>(type, p, sums[2 * u], sums[2 * u + 1]);
      else
        store_pair_part(type, p, count - u * kPair, sums[2 * u], sums[2 * u + 1]);
    }
  });
}

// One output: the sums of a block are held in memory between a few sources and the next few. Elements of 16
// bits become floats in memory first: vectors of doubles are quicker made of floats in memory than of the
// halves of a register. Since all sources have been read by then, the output may be a source.
template <bool whole, bool stream>
RATFAST_INLINE void mix_one(const MixSegment& segment, std::int64_t index, std::int64_t count,
                            const MixWeights& weights, DoubleOps::Flags& flags) {
  Vector block[kSumBlock / DoubleOps::width];
  for (int first = 0; first < weights.sources; first += kSourcesAtOnce) {
    const int last = first + kSourcesAtOnce < weights.sources ? first + kSourcesAtOnce : weights.sources;
    for (std::int64_t at = 0; at < count; at += kStep) {
      Vector* held = block + at / DoubleOps::width;
      Vector sums[kVectors];
      for (int i = 0; i < kVectors; ++i) sums[i] = first > 0 ? held[i] : DoubleOps::all(0);
      for (int n = first; n < last; ++n) {
        const Vector weight = DoubleOps::all(weights.values[n]);
        const auto add = [&](auto known, const char* source) __attribute__((always_inline)) {
          constexpr DType type = static_cast<DType>(known.value);
          constexpr DType wide = type == DType::f64 ? DType::f64 : DType::f32;
          alignas(64) char values[kStep * item_size(wide)];
          if (!whole || type != wide) {
            widen<whole, type>(source, count - at, wide, values);
            source = values;
          }
          for (int i = 0; i < kVectors; ++i) {
            const Vector v = DoubleOps::load(wide, source + i * DoubleOps::width * item_size(wide));
            sums[i] = DoubleOps::add(sums[i], DoubleOps::mul(v, weight));
          }
        };
        visit_source<whole>(segment, n, index + at, kSumBlock, add);
      }
      for (int i = 0; i < kVectors; ++i) held[i] = sums[i];
    }
  }
  for (std::int64_t at = 0; at < count; at += kStep)
    store_sums<whole, stream>(segment, 0, index + at, count - at, block + at / DoubleOps::width, flags);
}

// Several outputs: a block of every source is copied once, as `wide`, into the scratch, which stays in the
// first cache whatever the sources' addresses; then sums are made of as many outputs at a time as registers
// hold. Since all sources have been read by then, an output may be a source.
template <bool whole, bool stream, DType wide>
RATFAST_INLINE void mix_many(const MixSegment& segment, std::int64_t index, std::int64_t count,
                             const MixWeights& weights, DoubleOps::Flags& flags) {
  constexpr int bytes = DoubleOps::width * item_size(wide);
  char* scratch = reinterpret_cast<char*>(weights.scratch);
  const std::int64_t steps = (count + kStep - 1) / kStep;
  const std::int64_t stride = steps * kVectors * bytes;
  for (int n = 0; n < weights.sources; ++n) {
    for (std::int64_t step = 0; step < steps; ++step) {
      const std::int64_t at = step * kStep;
      const auto copy = [&](auto known, const char* source) __attribute__((always_inline)) {
        widen<whole, static_cast<DType>(known.value)>(source, count - at, wide,
                                                      scratch + n * stride + step * kVectors * bytes);
      };
      visit_source<whole>(segment, n, index + at, static_cast<int>(count), copy);
    }
  }
  const auto run = [&](std::int64_t step, int k, auto outputs) __attribute__((always_inline)) {
    const std::int64_t at = step * kStep;
    // Whole lines of an output are written at a time: halves, taking turns, would reach the memory as halves.
    Vector staged[outputs.value][kVectors];
    for (int i = 0; i < kVectors; i += 2) {
      Vector sums[outputs.value][2];
      for (int j = 0; j < outputs.value; ++j) sums[j][0] = sums[j][1] = DoubleOps::all(0);
      const char* values = scratch + (step * kVectors + i) * bytes;
      const double* row = weights.values + k;
      for (int n = 0; n < weights.sources; ++n, values += stride, row += weights.outputs) {
        const Vector a = DoubleOps::load(wide, values);
        const Vector b = DoubleOps::load(wide, values + bytes);
        for (int j = 0; j < outputs.value; ++j) {
          const Vector weight = DoubleOps::all(row[j]);
          sums[j][0] = DoubleOps::add(sums[j][0], DoubleOps::mul(a, weight));
          sums[j][1] = DoubleOps::add(sums[j][1], DoubleOps::mul(b, weight));
        }
      }
      for (int j = 0; j < outputs.value; ++j) {
        staged[j][i] = sums[j][0];
        staged[j][i + 1] = sums[j][1];
      }
    }
    for (int j = 0; j < outputs.value; ++j)
      store_sums<whole, stream>(segment, k + j, index + at, count - at, staged[j], flags);
    return k + outputs.value;
  };
  for (std::int64_t step = 0; step < steps; ++step) {
    int k = 0;
    while (k + kMostOutputsAtOnce <= weights.outputs) k = run(step, k, Number<kMostOutputsAtOnce>{});
    if (kMostOutputsAtOnce > 4 && k + 4 <= weights.outputs) k = run(step, k, Number<4>{});
    if (k + 2 <= weights.outputs) k = run(step, k, Number<2>{});
    if (k < weights.outputs) run(step, k, Number<1>{});
  }
}

// How a segment is mixed: one output, or several from copies that are floats or doubles.
enum class Loop { one, many, many_double };

// Mixes [index, end) block by block. If `whole`, that is a multiple of kStep.
template <bool whole, bool stream, Loop loop>
RATFAST_INLINE void mix_blocks(const MixSegment& segment, std::int64_t index, std::int64_t end,
                               const MixWeights& weights, DoubleOps::Flags& flags) {
  constexpr DType wide = loop == Loop::many_double ? DType::f64 : DType::f32;
  const int fitting = kScratchBytes / item_size(wide) / (weights.sources > 0 ? weights.sources : 1);
  const int few = fitting < kStep ? kStep : fitting < kLongestBlock ? fitting / kStep * kStep : kLongestBlock;
  const int block = loop == Loop::one ? kSumBlock : few;
  DoubleOps::Flags seen = flags;  // a copy that no store can alias
  for (; index < end; index += block) {
    const std::int64_t count = end - index < block ? end - index : block;
    if constexpr (loop == Loop::one)
      mix_one<whole, stream>(segment, index, count, weights, seen);
    else
      mix_many<whole, stream, wide>(segment, index, count, weights, seen);
  }
  flags = seen;
}

// Elements from `begin` to the first one where all outputs lie on a line of 64 bytes, or -1 if there is none.
std::int64_t to_aligned(const MixSegment& segment, std::int64_t begin, int outputs) {
  for (std::int64_t skip = 0; skip < 64; ++skip) {
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

template <Loop loop>
bool mix_segment(const MixSegment& segment, std::int64_t begin, std::int64_t end, const MixWeights& given) {
  const MixWeights weights = given;  // a copy that no store can alias
  DoubleOps::Flags flags = DoubleOps::no_flags();
  const std::int64_t skip = weights.stream ? to_aligned(segment, begin, weights.outputs) : -1;
  const bool stream = skip >= 0 && begin + skip + kStep <= end;
  const std::int64_t from = stream ? begin + skip : begin;
  const std::int64_t until = from + (end - from) / kStep * kStep;
  mix_blocks<false, false, loop>(segment, begin, from, weights, flags);
  if (stream) {
    mix_blocks<true, true, loop>(segment, from, until, weights, flags);
#if defined(__SSE2__)
    __builtin_ia32_sfence();
#endif
  } else {
    mix_blocks<true, false, loop>(segment, from, until, weights, flags);
  }
  mix_blocks<false, false, loop>(segment, until, end, weights, flags);
  return !DoubleOps::flagged(flags);
}

bool mix(const MixSegment& segment, std::int64_t begin, std::int64_t end, const MixWeights& weights) {
  // From so many outputs on, converting every time would cost more than the longer copies.
  constexpr int kOutputsFromDoubles = 3;
  if (weights.outputs == 1) return mix_segment<Loop::one>(segment, begin, end, weights);
  bool doubles = weights.outputs >= kOutputsFromDoubles;
  for (int n = 0; n < weights.sources; ++n) doubles = doubles || segment.source_types[n] == DType::f64;
  if (doubles) return mix_segment<Loop::many_double>(segment, begin, end, weights);
  return mix_segment<Loop::many>(segment, begin, end, weights);
}
