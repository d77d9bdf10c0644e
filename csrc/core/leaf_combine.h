// The reductions over the columns of a pool. Included by leaf.cpp only, inside its anonymous namespace, after
// leaf_mix.h.
//
// As there, tensors are walked in steps of a few lines, each model's step after the other's, so that the
// states stay in registers, and all models of a step are read before it is written.

constexpr int kColumnVectors = 4;
constexpr int kColumns = kColumnVectors * DoubleOps::width;
static_assert(kColumns == 4 * WordOps::width);  // a Philox block gives four words

// Each rounded by itself: contraction is off.
struct ColumnOps {
  using T = Vector;
  using Threshold = double;  // a trimming_limit
  RATFAST_INLINE T all(double x) { return DoubleOps::all(x); }
  RATFAST_INLINE T mul(T a, T b) { return a * b; }
  RATFAST_INLINE T add(T a, T b) { return a + b; }
  RATFAST_INLINE T sub(T a, T b) { return a - b; }
  RATFAST_INLINE T div(T a, T b) { return a / b; }
  RATFAST_INLINE T div(T a, double b) { return a / all(b); }
  RATFAST_INLINE T magnitude(T a) { return a < 0.0 ? -a : a; }
  RATFAST_INLINE auto below(T a, double limit) { return magnitude(a) < limit; }
  RATFAST_INLINE T log(T a) {
    for (int i = 0; i < DoubleOps::width; ++i) a[i] = __builtin_log(a[i]);
    return a;
  }
  RATFAST_INLINE T exp(T a) {
    for (int i = 0; i < DoubleOps::width; ++i) a[i] = __builtin_exp(a[i]);
    return a;
  }
};

// What is done to differences before they are added.
enum class Drops { none, trimmed, random };

// Elements [index, index + count) of one list; where they are not a `whole` step, zeros follow.
template <bool whole>
RATFAST_INLINE void load_columns(DType type, const void* list, std::int64_t index, int count,
                                 Vector (&values)[kColumnVectors]) {
  with_type(type, [&](auto known) __attribute__((always_inline)) {
    constexpr DType constant = static_cast<DType>(known.value);
    constexpr int size = item_size(constant);
    const char* p = static_cast<const char*>(list) + index * size;
    if constexpr (whole) {
      for (int line = 0; line < kColumns * size; line += 64)
        __builtin_prefetch(p + kSourceAhead + line, 0, 2);
      load_vectors<constant>(p, values);
    } else {
      alignas(64) char padded[kColumns * size] = {};
      memcpy(padded, p, static_cast<std::size_t>(count * size));
      load_vectors<constant>(padded, values);
    }
  });
}

// Drops differences of model n at random. `place` is the first element's within its tensor; what is not a
// whole step lies within one block of four words.
RATFAST_INLINE void thin(const CombineOptions& options, int n, std::uint64_t key, std::int64_t place,
                         Vector (&values)[kColumnVectors]) {
  const double density = options.densities[n];
  if (!(density < 1)) return;
  const auto stream = static_cast<std::uint32_t>(options.streams == nullptr ? n : options.streams[n]);
  alignas(64) std::uint32_t words[kColumns + 4] = {};
  typename WordOps::W drawn[4];
  WordOps::counters(static_cast<std::uint64_t>(place) / 4, drawn[0], drawn[1]);
  drawn[2] = WordOps::all(key);
  drawn[3] = WordOps::all(key >> 32);
  philox_rounds<WordOps>(drawn, static_cast<std::uint32_t>(options.seed), stream);
  WordOps::store(words, drawn);
  const std::uint32_t* at = words + place % 4;
  for (int v = 0; v < kColumnVectors; ++v)
    values[v] = combine_thin<ColumnOps>(values[v], DoubleOps::from_words(at + v * DoubleOps::width), density);
}

template <CombineKind kind, Drops drops, bool whole>
RATFAST_INLINE void combine_step(const CombineSegment& segment, std::int64_t index, int count,
                                 const CombineOptions& options, DoubleOps::Flags& flags) {
  Vector extra[kColumnVectors] = {};  // Fisher's information, or the base
  CombineState<ColumnOps> states[kColumnVectors];
  if (of_differences(kind) && segment.base != nullptr)
    load_columns<whole>(segment.base_type, segment.base, index, count, extra);
  for (auto& state : states) state = combine_begin<ColumnOps>(kind);
  for (int n = 0; n < options.models; ++n) {
    Vector values[kColumnVectors];
    load_columns<whole>(segment.source_types[n], segment.sources[n], index, count, values);
    if constexpr (kind == CombineKind::fisher) {
      const int m = options.models + n;
      load_columns<whole>(segment.source_types[m], segment.sources[m], index, count, extra);
    }
    if constexpr (of_differences(kind)) {
      for (int v = 0; v < kColumnVectors; ++v) values[v] = ColumnOps::sub(values[v], extra[v]);
      if (drops == Drops::trimmed || (drops == Drops::random && segment.limits != nullptr))
        for (auto& value : values) value = combine_trim<ColumnOps>(value, segment.limits[n]);
      if (drops == Drops::random) thin(options, n, segment.key, segment.first + index, values);
    }
    for (int v = 0; v < kColumnVectors; ++v)
      combine_add<ColumnOps>(kind, states[v], values[v], extra[v], options.weights[n]);
  }
  alignas(64) double results[kColumns];
  for (int v = 0; v < kColumnVectors; ++v)
    keep(results + v * DoubleOps::width,
         combine_finish<ColumnOps>(kind, states[v], extra[v], options.scale, options.normalize));
  if (!whole)
    for (int i = count; i < kColumns; ++i) results[i] = 0;
  with_type(segment.output_type, [&](auto known) __attribute__((always_inline)) {
    constexpr DType type = static_cast<DType>(known.value);
    const Vector limit = DoubleOps::all(finite_limit(type));
    char* target = static_cast<char*>(segment.output) + index * item_size(type);
    for (int i = 0; i < kColumns; i += kPair) {
      const Vector a = kept(results + i), b = kept(results + i + DoubleOps::width);
      flags = DoubleOps::flag(DoubleOps::flag(flags, a, limit), b, limit);
      if (whole)
        DoubleOps::store_pair<false>(type, target + i * item_size(type), a, b);
      else
        store_pair_part(type, target + i * item_size(type), count - i, a, b);
    }
  });
}

template <CombineKind kind, Drops drops>
bool combine_range(const CombineSegment& given_segment, std::int64_t index, std::int64_t end,
                   const CombineOptions& given_options) {
  const CombineSegment segment = given_segment;  // copies that no store can alias
  const CombineOptions options = given_options;
  DoubleOps::Flags flags = DoubleOps::no_flags();
  const auto part = [&](std::int64_t count) __attribute__((always_inline)) {
    combine_step<kind, drops, false>(segment, index, static_cast<int>(count), options, flags);
    index += count;
  };
  // Whole steps begin with a block of random words.
  const std::int64_t before = -(segment.first + index) & 3;
  if (drops == Drops::random && before > 0 && index < end) part(end - index < before ? end - index : before);
  for (; end - index >= kColumns; index += kColumns)
    combine_step<kind, drops, true>(segment, index, kColumns, options, flags);
  if (index < end) part(end - index);
  return !DoubleOps::flagged(flags);
}

template <CombineKind kind>
bool combine_kind(const CombineSegment& segment, std::int64_t begin, std::int64_t end,
                  const CombineOptions& options) {
  if constexpr (of_differences(kind)) {
    if (options.densities != nullptr) return combine_range<kind, Drops::random>(segment, begin, end, options);
    if (segment.limits != nullptr) return combine_range<kind, Drops::trimmed>(segment, begin, end, options);
  }
  return combine_range<kind, Drops::none>(segment, begin, end, options);
}

bool combine(const CombineSegment& segment, std::int64_t begin, std::int64_t end,
             const CombineOptions& options) {
  switch (options.kind) {
    case CombineKind::min:
      return combine_kind<CombineKind::min>(segment, begin, end, options);
    case CombineKind::max:
      return combine_kind<CombineKind::max>(segment, begin, end, options);
    case CombineKind::geometric:
      return combine_kind<CombineKind::geometric>(segment, begin, end, options);
    case CombineKind::fisher:
      return combine_kind<CombineKind::fisher>(segment, begin, end, options);
    case CombineKind::sum:
      return combine_kind<CombineKind::sum>(segment, begin, end, options);
    default:
      return combine_kind<CombineKind::elect>(segment, begin, end, options);
  }
}
