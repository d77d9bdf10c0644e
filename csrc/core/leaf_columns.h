// Inner products, and the reductions over the columns of a pool. Included by leaf.cpp only, inside its
// anonymous namespace, after leaf_mix.h.

// The elements [0, count) at p, the rest of the pair zero.
RATFAST_INLINE void load_pair_part(DType type, const char* p, std::int64_t count, Vector& a, Vector& b) {
  if (count >= kPair) return DoubleOps::load_pair(type, p, a, b);
  alignas(64) char padded[kPair * 8] = {};
  if (count > 0) memcpy(padded, p, static_cast<std::size_t>(count) * item_size(type));
  DoubleOps::load_pair(type, padded, a, b);
}

// Converts elements [begin, begin + count) into doubles; zeros follow up to a multiple of kPair.
RATFAST_INLINE void widen(DType type, const void* source, std::int64_t begin, int count, double* result) {
  const int size = item_size(type);
  const char* p = static_cast<const char*>(source) + begin * size;
  const auto run = [&](DType known) __attribute__((always_inline)) {
    for (int i = 0; i < count; i += kPair) {
      Vector a, b;
      load_pair_part(known, p + i * size, count - i, a, b);
      DoubleOps::store_pair<false>(DType::f64, reinterpret_cast<char*>(result + i), a, b);
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

// The blocks that tensors are widened in: small enough for the first cache.
constexpr int kGramBlock = 128;
constexpr int kCombineBlock = 256;

// Rows and columns of the matrix whose sums are held in registers.
constexpr int kTileRows = 3;
constexpr int kTileColumns = 3;
static_assert(kGramModels % kTileRows == 0 && kGramModels % kTileColumns == 0);
static_assert(kGramLanes % DoubleOps::width == 0 && kGramBlock % kGramLanes == 0);

RATFAST_INLINE void gram_tile(const double* rows, const double* columns, int count, double* lanes) {
  constexpr int width = DoubleOps::width;
  const auto load = [](const double* p) __attribute__((always_inline)) {
    return DoubleOps::load(DType::f64, reinterpret_cast<const char*>(p));
  };
  for (int lane = 0; lane < kGramLanes; lane += width) {
    Vector sums[kTileRows][kTileColumns];
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < kTileColumns; ++j)
        sums[i][j] = load(lanes + (i * kGramModels + j) * kGramLanes + lane);
    for (int at = lane; at < count; at += kGramLanes) {
      Vector right[kTileColumns];
      for (int j = 0; j < kTileColumns; ++j) right[j] = load(columns + j * kGramBlock + at);
      for (int i = 0; i < kTileRows; ++i) {
        const Vector left = load(rows + i * kGramBlock + at);
        for (int j = 0; j < kTileColumns; ++j)
          sums[i][j] = DoubleOps::add(sums[i][j], DoubleOps::mul(left, right[j]));
      }
    }
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < kTileColumns; ++j)
        DoubleOps::store<false>(DType::f64,
                                reinterpret_cast<char*>(lanes + (i * kGramModels + j) * kGramLanes + lane),
                                sums[i][j]);
  }
}

void gram(const GramSegment& segment, std::int64_t begin, std::int64_t end, const GramTile& tile,
          double* lanes) {
  alignas(64) double rows[kGramModels * kGramBlock] = {};
  alignas(64) double others[kGramModels * kGramBlock] = {};
  const bool diagonal = tile.first_row == tile.first_column;
  const double* columns = diagonal ? rows : others;
  for (std::int64_t index = begin; index < end; index += kGramBlock) {
    const int count = end - index < kGramBlock ? static_cast<int>(end - index) : kGramBlock;
    const auto fill = [&](int first, int models, double* values) {
      for (int n = 0; n < models; ++n) {
        double* row = values + n * kGramBlock;
        const DType type = segment.types[first + n];
        __builtin_prefetch(static_cast<const char*>(segment.sources[first + n]) +
                           (index + kGramBlock) * item_size(type));
        if (count < kGramBlock) memset(row, 0, kGramBlock * sizeof(double));
        widen(type, segment.sources[first + n], index, count, row);
      }
    };
    fill(tile.first_row, tile.rows, rows);
    if (!diagonal) fill(tile.first_column, tile.columns, others);
    for (int i = 0; i < tile.rows; i += kTileRows)
      for (int j = 0; j < tile.columns; j += kTileColumns)
        if (!diagonal || j + kTileColumns > i)
          gram_tile(rows + i * kGramBlock, columns + j * kGramBlock, count,
                    lanes + (i * kGramModels + j) * kGramLanes);
  }
}

void magnitudes(const MagnitudeSegment& segment, std::int64_t begin, std::int64_t end, float* result) {
  alignas(64) double values[kCombineBlock];
  alignas(64) double base[kCombineBlock] = {};
  for (std::int64_t index = begin; index < end; index += kCombineBlock) {
    const int count = end - index < kCombineBlock ? static_cast<int>(end - index) : kCombineBlock;
    widen(segment.source_type, segment.source, index, count, values);
    if (segment.base != nullptr) widen(segment.base_type, segment.base, index, count, base);
    for (int i = 0; i < count; ++i) {
      const float difference = static_cast<float>(values[i] - base[i]);
      result[index - begin + i] = __builtin_fabsf(difference);
    }
  }
}

// Each rounded by itself: contraction is off.
struct ExactOps {
  RATFAST_INLINE double mul(double a, double b) { return a * b; }
  RATFAST_INLINE double add(double a, double b) { return a + b; }
  RATFAST_INLINE double sub(double a, double b) { return a - b; }
  RATFAST_INLINE double div(double a, double b) { return a / b; }
};

// A block of CombineStates, field by field for the vectoriser.
struct CombineBlock {
  alignas(64) double total[kCombineBlock];
  alignas(64) double positive[kCombineBlock];
  alignas(64) double negative[kCombineBlock];
  alignas(64) double positive_weight[kCombineBlock];
  alignas(64) double negative_weight[kCombineBlock];
};

// Only the fields that a kind uses are kept: see combine_add.
constexpr bool uses_positive(CombineKind kind) {
  return kind == CombineKind::geometric || kind == CombineKind::elect;
}
constexpr bool uses_weights(CombineKind kind) {
  return kind == CombineKind::fisher || kind == CombineKind::elect;
}

template <CombineKind kind>
RATFAST_INLINE CombineState state_at(const CombineBlock& block, int i) {
  CombineState state = combine_begin(kind);
  state.total = block.total[i];
  if (uses_positive(kind)) state.positive = block.positive[i];
  if (uses_weights(kind)) state.negative = block.negative[i];
  if (uses_weights(kind)) state.positive_weight = block.positive_weight[i];
  if (uses_weights(kind) || uses_positive(kind)) state.negative_weight = block.negative_weight[i];
  return state;
}

template <CombineKind kind>
RATFAST_INLINE void set_state(CombineBlock& block, int i, const CombineState& state) {
  block.total[i] = state.total;
  if (uses_positive(kind)) block.positive[i] = state.positive;
  if (uses_weights(kind)) block.negative[i] = state.negative;
  if (uses_weights(kind)) block.positive_weight[i] = state.positive_weight;
  if (uses_weights(kind) || uses_positive(kind)) block.negative_weight[i] = state.negative_weight;
}

// The draws of elements [place, place + count) of a tensor; returns where they begin in `words`, which has
// room for a block and the rest of the groups of four at its ends.
RATFAST_INLINE const std::uint32_t* draw(const CombineOptions& options, int n, std::uint64_t key,
                                         std::int64_t place, int count, std::uint32_t* words) {
  const auto stream = static_cast<std::uint32_t>(options.streams == nullptr ? n : options.streams[n]);
  const auto first = static_cast<std::uint64_t>(place) / 4;
  const auto groups = (static_cast<std::uint64_t>(place) % 4 + static_cast<std::uint64_t>(count) + 3) / 4;
  for (std::uint64_t group = 0; group < groups; ++group) {
    const PhiloxWords drawn = philox(static_cast<std::uint32_t>(options.seed), stream, first + group, key);
    for (int i = 0; i < 4; ++i) words[group * 4 + i] = drawn.word[i];
  }
  return words + place % 4;
}

template <CombineKind kind>
bool combine_kind(const CombineSegment& segment, std::int64_t begin, std::int64_t end,
                  const CombineOptions& options) {
  constexpr bool fisher = kind == CombineKind::fisher;
  alignas(64) double values[kCombineBlock];
  alignas(64) double extra[kCombineBlock] = {};  // Fisher's information, or the base
  alignas(64) std::uint32_t words[kCombineBlock + 8] = {};
  CombineBlock block;
  const Vector limit = DoubleOps::all(finite_limit(segment.output_type));
  DoubleOps::Flags flags = DoubleOps::no_flags();
  for (std::int64_t index = begin; index < end; index += kCombineBlock) {
    const int count = end - index < kCombineBlock ? static_cast<int>(end - index) : kCombineBlock;
    if (of_differences(kind) && segment.base != nullptr)
      widen(segment.base_type, segment.base, index, count, extra);
    for (int i = 0; i < kCombineBlock; ++i) set_state<kind>(block, i, combine_begin(kind));
    for (int n = 0; n < options.models; ++n) {
      const double weight = options.weights[n];
      widen(segment.source_types[n], segment.sources[n], index, count, values);
      if (fisher)
        widen(segment.source_types[options.models + n], segment.sources[options.models + n], index, count,
              extra);
      if (of_differences(kind)) {
        const float threshold = segment.thresholds == nullptr ? 0.0f : segment.thresholds[n];
        const double density = options.densities == nullptr ? 1.0 : options.densities[n];
        // Apart, so that each loop is free of what it does not need.
        if (density < 1) {
          const std::uint32_t* drawn = draw(options, n, segment.key, segment.first + index, count, words);
          for (int i = 0; i < count; ++i)
            values[i] = combine_drop<ExactOps>(values[i] - extra[i], threshold, density, drawn[i] * 0x1p-32);
        } else if (segment.thresholds != nullptr) {
          for (int i = 0; i < count; ++i)
            values[i] = combine_drop<ExactOps>(values[i] - extra[i], threshold, 1.0, 0.0);
        } else {
          for (int i = 0; i < count; ++i) values[i] = values[i] - extra[i];
        }
      }
      for (int i = 0; i < count; ++i) {
        CombineState state = state_at<kind>(block, i);
        combine_add<ExactOps>(kind, state, values[i], extra[i], weight);
        set_state<kind>(block, i, state);
      }
    }
    for (int i = 0; i < count; ++i)
      values[i] = combine_finish<ExactOps>(kind, state_at<kind>(block, i), extra[i], options.scale,
                                           options.normalize);
    for (int i = count; i < kCombineBlock; ++i) values[i] = 0;
    const int size = item_size(segment.output_type);
    char* target = static_cast<char*>(segment.output) + index * size;
    for (int i = 0; i < count; i += kPair) {
      Vector a, b;
      DoubleOps::load_pair(DType::f64, reinterpret_cast<const char*>(values + i), a, b);
      flags = DoubleOps::flag(DoubleOps::flag(flags, a, limit), b, limit);
      store_pair_part(segment.output_type, target + i * size, count - i, a, b);
    }
  }
  return !DoubleOps::flagged(flags);
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
