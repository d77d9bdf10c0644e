// Optimizer steps. Included by leaf.cpp only, inside its anonymous namespace.

// The value as it is read back after a store as `type`.
template <class Ops>
RATFAST_INLINE typename Ops::V as_stored(DType type, typename Ops::V v) {
  if (type == DType::f64 || type == (sizeof(typename Ops::A) == 8 ? DType::f64 : DType::f32)) return v;
  alignas(64) char bytes[64];
  Ops::template store<false>(type, bytes, v);
  return Ops::load(type, bytes);
}

// One vector of elements. If `plain`, all that is read is of the type that the arithmetic runs in; if not
// `extra`, there is neither an average nor a copy, and gradients stay.
template <class Ops, bool whole, bool plain, bool extra, class Scalars>
RATFAST_INLINE void step_vector(const StepSegment& a, std::int64_t index, std::int64_t count,
                                const Scalars& scalars, const StepExtras& extras) {
  using A = typename Ops::A;
  using V = typename Ops::V;
  constexpr DType own = sizeof(A) == 8 ? DType::f64 : DType::f32;
  const DType param_type = plain ? own : a.param_type;
  const DType grad_type = plain ? own : a.grad_type;
  const DType state_type = plain ? own : a.state_type;
  const DType average_type = plain ? own : a.average_type;
  const auto at = [&](const void* p, DType type) __attribute__((always_inline)) {
    return static_cast<const char*>(p) + index * item_size(type);
  };
  const auto load = [&](const void* p, DType type) __attribute__((always_inline)) {
    if (whole) __builtin_prefetch(at(p, type) + kPrefetch);
    return whole ? Ops::load(type, at(p, type)) : load_part<Ops>(type, at(p, type), count);
  };
  const auto store = [&](void* p, DType type, V v) __attribute__((always_inline)) {
    char* target = const_cast<char*>(at(p, type));
    if (whole)
      Ops::template store<false>(type, target, v);
    else
      store_part<Ops>(type, target, count, v);
  };
  V param = load(a.param, param_type);
  const V grad = load(a.grad, grad_type);
  const int kept = state_count(scalars);
  const bool read = reads_states(scalars);
  V states[kMostStates];
  for (int i = 0; i < kMostStates; ++i)
    states[i] = i < kept && read ? load(a.states[i], state_type) : Ops::all(A(0));
  step_update<Ops>(scalars, param, grad, states);
  store(a.param, param_type, param);
  for (int i = 0; i < kMostStates; ++i)
    if (i < kept) store(a.states[i], state_type, states[i]);
  if (!extra) return;
  if (a.average != nullptr) {
    const V average = load(a.average, average_type);
    const V stored = plain ? param : as_stored<Ops>(param_type, param);
    store(a.average, average_type,
          average_update<Ops>(static_cast<A>(extras.average_weight), average, stored));
  }
  if (a.copy != nullptr) store(a.copy, a.copy_type, param);
  if (extras.zero_grads) store(a.grad, grad_type, Ops::all(A(0)));
}

template <class Ops, bool plain, bool extra, class Scalars>
void step_elements(const StepSegment& given_segment, std::int64_t index, std::int64_t end,
                   const Scalars& given_scalars, const StepExtras& given_extras) {
  // Copies that no store can alias.
  const StepSegment segment = given_segment;
  const Scalars scalars = given_scalars;
  const StepExtras extras = given_extras;
  for (; index + Ops::width <= end; index += Ops::width)
    step_vector<Ops, true, plain, extra>(segment, index, Ops::width, scalars, extras);
  if (index < end) step_vector<Ops, false, plain, extra>(segment, index, end - index, scalars, extras);
}

template <class Ops, class Scalars>
void step(const StepSegment& segment, std::int64_t begin, std::int64_t end, const Scalars& scalars,
          const StepExtras& extras) {
  constexpr DType own = sizeof(typename Ops::A) == 8 ? DType::f64 : DType::f32;
  const bool plain = is_plain(segment, own, own);
  const bool extra = segment.average != nullptr || segment.copy != nullptr || extras.zero_grads;
  if (plain)
    extra ? step_elements<Ops, true, true>(segment, begin, end, scalars, extras)
          : step_elements<Ops, true, false>(segment, begin, end, scalars, extras);
  else
    extra ? step_elements<Ops, false, true>(segment, begin, end, scalars, extras)
          : step_elements<Ops, false, false>(segment, begin, end, scalars, extras);
}
