// The inner loops. Compiled several times, each with other instruction-set flags and another RATFAST_LEAF;
// all but the one table at the end stays inside this object (a test looks for weak symbols).
#include "leaf.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ratfast {
namespace {

#if defined(__AVX512F__)
#include "vec_avx512.h"
#elif defined(__AVX2__)
#include "vec_avx2.h"
#else
#include "vec_default.h"
#endif

// Bytes ahead of the loads: past what the hardware fetches by itself at the start of each page.
constexpr int kPrefetch = 1024;

// The elements [0, count) at p, the rest of the vector zero.
template <class Ops>
RATFAST_INLINE typename Ops::V load_part(DType type, const char* p, std::int64_t count) {
  if (count >= Ops::width) return Ops::load(type, p);
  alignas(64) char padded[64] = {};
  if (count > 0) memcpy(padded, p, static_cast<std::size_t>(count) * item_size(type));
  return Ops::load(type, padded);
}

template <class Ops>
RATFAST_INLINE void store_part(DType type, char* p, std::int64_t count, typename Ops::V v) {
  if (count >= Ops::width) return Ops::template store<false>(type, p, v);
  alignas(64) char padded[64];
  Ops::template store<false>(type, padded, v);
  if (count > 0) memcpy(p, padded, static_cast<std::size_t>(count) * item_size(type));
}

#include "leaf_mix.h"
// Need what stands in the former:
#include "leaf_combine.h"
#include "leaf_gram.h"
#include "leaf_squares.h"
#include "leaf_step.h"

}  // namespace

extern const Leaf RATFAST_LEAF;
const Leaf RATFAST_LEAF = {mix,
                           combine,
                           gram,
                           magnitudes,
                           squares,
                           step<FloatOps, AdamScalars<float>>,
                           step<DoubleOps, AdamScalars<double>>,
                           step<FloatOps, SgdScalars<float>>,
                           step<DoubleOps, SgdScalars<double>>};

}  // namespace ratfast
