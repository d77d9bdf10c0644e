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
// Needs what stands in the former:
#include "leaf_columns.h"

// If `plain`, all tensors are of the type that the arithmetic runs in.
template <class Ops, bool whole, bool plain>
RATFAST_INLINE void adam_step(const AdamSegment& a, std::int64_t index, std::int64_t count,
                              const AdamScalars<typename Ops::A>& scalars) {
  constexpr DType own = sizeof(typename Ops::A) == 8 ? DType::f64 : DType::f32;
  const DType param_type = plain ? own : a.param_type;
  const DType grad_type = plain ? own : a.grad_type;
  const DType state_type = plain ? own : a.state_type;
  const auto at = [&](const void* p, DType type) __attribute__((always_inline)) {
    return static_cast<const char*>(p) + index * item_size(type);
  };
  const auto load = [&](const void* p, DType type) __attribute__((always_inline)) {
    if (whole) __builtin_prefetch(at(p, type) + kPrefetch);
    return whole ? Ops::load(type, at(p, type)) : load_part<Ops>(type, at(p, type), count);
  };
  const auto store = [&](void* p, DType type, typename Ops::V v) __attribute__((always_inline)) {
    char* target = const_cast<char*>(at(p, type));
    if (whole)
      Ops::template store<false>(type, target, v);
    else
      store_part<Ops>(type, target, count, v);
  };
  auto param = load(a.param, param_type);
  auto exp_avg = load(a.exp_avg, state_type);
  auto exp_avg_sq = load(a.exp_avg_sq, state_type);
  auto largest = scalars.amsgrad ? load(a.max_exp_avg_sq, state_type) : exp_avg_sq;
  adam_update<Ops>(scalars, param, load(a.grad, grad_type), exp_avg, exp_avg_sq, largest);
  store(a.param, param_type, param);
  store(a.exp_avg, state_type, exp_avg);
  store(a.exp_avg_sq, state_type, exp_avg_sq);
  if (scalars.amsgrad) store(a.max_exp_avg_sq, state_type, largest);
}

template <class Ops, bool plain>
void adam_steps(const AdamSegment& segment, std::int64_t index, std::int64_t end,
                const AdamScalars<typename Ops::A>& given) {
  const AdamScalars<typename Ops::A> scalars = given;  // a copy that no store can alias
  for (; index + Ops::width <= end; index += Ops::width)
    adam_step<Ops, true, plain>(segment, index, Ops::width, scalars);
  if (index < end) adam_step<Ops, false, plain>(segment, index, end - index, scalars);
}

template <class Ops>
void adam(const AdamSegment& segment, std::int64_t begin, std::int64_t end,
          const AdamScalars<typename Ops::A>& scalars) {
  constexpr DType own = sizeof(typename Ops::A) == 8 ? DType::f64 : DType::f32;
  if (segment.param_type == own && segment.grad_type == own && segment.state_type == own)
    adam_steps<Ops, true>(segment, begin, end, scalars);
  else
    adam_steps<Ops, false>(segment, begin, end, scalars);
}

}  // namespace

extern const Leaf RATFAST_LEAF;
const Leaf RATFAST_LEAF = {mix, combine, gram, magnitudes, adam<FloatOps>, adam<DoubleOps>};

}  // namespace ratfast
