// Inner products and magnitudes. Included by leaf.cpp only, inside its anonymous namespace, after leaf_mix.h.

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
constexpr int kMagnitudeBlock = 256;

// Rows and columns of the matrix whose sums are held in registers.
#if defined(__AVX512F__)
constexpr int kTileRows = 4;
constexpr int kTileColumns = 4;
#else
constexpr int kTileRows = 3;
constexpr int kTileColumns = 3;
#endif
static_assert(kGramModels % kTileRows == 0 && kGramModels % kTileColumns == 0);
static_assert(kGramLanes % DoubleOps::width == 0 && kGramBlock % kGramLanes == 0);

// If `exact`, no factor is wider than a float: their products are doubles without rounding, so that a fused
// operation gives what a product and a sum give.
template <bool exact>
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
          sums[i][j] = exact ? DoubleOps::madd(left, right[j], sums[i][j])
                             : DoubleOps::add(sums[i][j], DoubleOps::mul(left, right[j]));
      }
    }
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < kTileColumns; ++j)
        DoubleOps::store<false>(DType::f64,
                                reinterpret_cast<char*>(lanes + (i * kGramModels + j) * kGramLanes + lane),
                                sums[i][j]);
  }
}

template <bool exact>
void gram_tiles(const GramSegment& segment, std::int64_t begin, std::int64_t end, const GramTile& tile,
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
          gram_tile<exact>(rows + i * kGramBlock, columns + j * kGramBlock, count,
                           lanes + (i * kGramModels + j) * kGramLanes);
  }
}

void gram(const GramSegment& segment, std::int64_t begin, std::int64_t end, const GramTile& tile,
          double* lanes) {
  bool exact = true;
  for (int n = 0; n < tile.rows; ++n) exact = exact && segment.types[tile.first_row + n] != DType::f64;
  for (int n = 0; n < tile.columns; ++n) exact = exact && segment.types[tile.first_column + n] != DType::f64;
  exact ? gram_tiles<true>(segment, begin, end, tile, lanes)
        : gram_tiles<false>(segment, begin, end, tile, lanes);
}

void magnitudes(const MagnitudeSegment& segment, std::int64_t begin, std::int64_t end, float* result) {
  alignas(64) double values[kMagnitudeBlock];
  alignas(64) double base[kMagnitudeBlock] = {};
  for (std::int64_t index = begin; index < end; index += kMagnitudeBlock) {
    const int count = end - index < kMagnitudeBlock ? static_cast<int>(end - index) : kMagnitudeBlock;
    widen(segment.source_type, segment.source, index, count, values);
    if (segment.base != nullptr) widen(segment.base_type, segment.base, index, count, base);
    for (int i = 0; i < count; ++i) {
      const float difference = static_cast<float>(values[i] - base[i]);
      result[index - begin + i] = __builtin_fabsf(difference);
    }
  }
}
