// The element types that weights come in, and their conversions, for host and device code.
#pragma once

#include <cstdint>
#include <cstring>

// Internal linkage and forced inlining: objects compiled for different instruction sets must not share a
// copy.
#if defined(__CUDACC__)
#define RATFAST_HD static __forceinline__ __host__ __device__
#else
#define RATFAST_HD [[maybe_unused]] static inline __attribute__((always_inline))
#endif

namespace ratfast {

enum class DType : std::uint8_t { f64, f32, f16, bf16 };

RATFAST_HD constexpr int item_size(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

template <class To, class From>
RATFAST_HD To bits_of(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To bits;
  memcpy(&bits, &value, sizeof(To));
  return bits;
}

RATFAST_HD float bf16_to_float(std::uint16_t bits) {
  return bits_of<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Rounds to nearest, ties to even; every NaN becomes the quiet one.
RATFAST_HD std::uint16_t float_to_bf16(float value) {
  const auto bits = bits_of<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

RATFAST_HD float f16_to_float(std::uint16_t bits) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: a multiple of 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return bits_of<float>(bits_of<std::uint32_t>(magnitude) | sign);
  }
  if (exponent == 31) {
    const std::uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
    return bits_of<float>(sign | 0x7f800000u | quiet | (mantissa << 13));
  }
  return bits_of<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
#endif
}

// Rounds to nearest, ties to even, as the hardware's conversion does.
RATFAST_HD std::uint16_t float_to_f16(float value) {
#if defined(__CUDA_ARCH__)
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const auto bits = bits_of<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // NaN, quiet, with its payload
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the multiple of 2^-24, rounded, in the low bits.
    half = bits_of<std::uint32_t>(bits_of<float>(magnitude) + 0.5f) - bits_of<std::uint32_t>(0.5f);
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<std::uint16_t>(half | sign);
#endif
}

// What the magnitude of a double must stay below to become a finite number of the type, by way of float.
RATFAST_HD double finite_limit(DType type) {
  switch (type) {
    case DType::f64:
      return bits_of<double>(std::uint64_t{0x7ff0000000000000});
    case DType::f32:
      return 0x1p128 - 0x1p103;
    case DType::f16:
      return 65520.0 - 0x1p-9;
    default:
      return 0x1.ffp127 - 0x1p103;
  }
}

// One element of any type, as the type that sums are held in, and back.
template <class A>
RATFAST_HD A load_scalar(DType type, const void* source, std::int64_t index) {
  switch (type) {
    case DType::f64:
      return static_cast<A>(static_cast<const double*>(source)[index]);
    case DType::f32:
      return static_cast<A>(static_cast<const float*>(source)[index]);
    case DType::f16:
      return static_cast<A>(f16_to_float(static_cast<const std::uint16_t*>(source)[index]));
    default:
      return static_cast<A>(bf16_to_float(static_cast<const std::uint16_t*>(source)[index]));
  }
}

template <class A>
RATFAST_HD void store_scalar(DType type, void* target, std::int64_t index, A value) {
  switch (type) {
    case DType::f64:
      static_cast<double*>(target)[index] = static_cast<double>(value);
      break;
    case DType::f32:
      static_cast<float*>(target)[index] = static_cast<float>(value);
      break;
    case DType::f16:
      static_cast<std::uint16_t*>(target)[index] = float_to_f16(static_cast<float>(value));
      break;
    default:
      static_cast<std::uint16_t*>(target)[index] = float_to_bf16(static_cast<float>(value));
  }
}

// The same on bytes that are not objects of the type, such as registers filled by wide loads.
template <class A>
RATFAST_HD A load_packed(DType type, const unsigned char* bytes, int index) {
  if (type == DType::f64) {
    double value;
    memcpy(&value, bytes + index * 8, 8);
    return static_cast<A>(value);
  }
  if (type == DType::f32) {
    float value;
    memcpy(&value, bytes + index * 4, 4);
    return static_cast<A>(value);
  }
  std::uint16_t bits;
  memcpy(&bits, bytes + index * 2, 2);
  return static_cast<A>(type == DType::f16 ? f16_to_float(bits) : bf16_to_float(bits));
}

template <class A>
RATFAST_HD void store_packed(DType type, unsigned char* bytes, int index, A value) {
  if (type == DType::f64) {
    const double wide = static_cast<double>(value);
    memcpy(bytes + index * 8, &wide, 8);
    return;
  }
  const float single = static_cast<float>(value);
  if (type == DType::f32) {
    memcpy(bytes + index * 4, &single, 4);
    return;
  }
  const std::uint16_t bits = type == DType::f16 ? float_to_f16(single) : float_to_bf16(single);
  memcpy(bytes + index * 2, &bits, 2);
}

}  // namespace ratfast
