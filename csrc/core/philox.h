// Philox4x32-10 (Salmon et al., SC'11): random words by their place, the same on every device.
#pragma once

#include "dtype.h"

namespace ratfast {

struct PhiloxWords {
  std::uint32_t word[4];
};

// One word at a time.
struct ScalarWords {
  using W = std::uint32_t;
  RATFAST_HD void multiply(W a, std::uint32_t b, W& low, W& high) {
    const std::uint64_t product = std::uint64_t{a} * b;
    low = static_cast<std::uint32_t>(product);
    high = static_cast<std::uint32_t>(product >> 32);
  }
};

// Turns counters into random words, in place. Words are the low 32 bits of each lane of an Ops::W; what
// stands above them is without meaning. Ops::multiply gives the low and the high word of a product.
template <class Ops>
RATFAST_HD void philox_rounds(typename Ops::W (&c)[4], std::uint32_t key0, std::uint32_t key1) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    typename Ops::W first_low, first_high, second_low, second_high;
    Ops::multiply(c[0], 0xD2511F53u, first_low, first_high);
    Ops::multiply(c[2], 0xCD9E8D57u, second_low, second_high);
    c[0] = second_high ^ c[1] ^ key0;
    c[1] = second_low;
    c[2] = first_high ^ c[3] ^ key1;
    c[3] = first_low;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

RATFAST_HD PhiloxWords philox(std::uint32_t key0, std::uint32_t key1, std::uint64_t low, std::uint64_t high) {
  std::uint32_t c[4] = {static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(low >> 32),
                        static_cast<std::uint32_t>(high), static_cast<std::uint32_t>(high >> 32)};
  philox_rounds<ScalarWords>(c, key0, key1);
  return {{c[0], c[1], c[2], c[3]}};
}

}  // namespace ratfast
