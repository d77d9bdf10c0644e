// Compiled with SHA and AVX instructions: no code that other files share may be in here.
#include "sha256_blocks.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace ratfast {
namespace {

// Unrolled, so that everything indexed by lane stays in registers.
template <int kLanes>
inline __attribute__((always_inline)) void advance(std::uint32_t* const* states,
                                                   const std::uint8_t* const* data, std::int64_t blocks) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  __m128i abef[kLanes], cdgh[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto* words = reinterpret_cast<const __m128i*>(states[lane]);
    const __m128i dcba = _mm_loadu_si128(words), hgfe = _mm_loadu_si128(words + 1);
    const __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
    abef[lane] = _mm_alignr_epi8(cdab, efgh, 8);
    cdgh[lane] = _mm_blend_epi16(efgh, cdab, 0xf0);
  }
  for (std::int64_t block = 0; block < blocks; ++block) {
    __m128i abef_before[kLanes], cdgh_before[kLanes], schedule[kLanes][4];
#pragma GCC unroll 4
    for (int lane = 0; lane < kLanes; ++lane) {
      abef_before[lane] = abef[lane];
      cdgh_before[lane] = cdgh[lane];
      const auto* message = reinterpret_cast<const __m128i*>(data[lane] + 64 * block);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        schedule[lane][i] = _mm_shuffle_epi8(_mm_loadu_si128(message + i), big_endian);
    }
#pragma GCC unroll 16
    for (int four = 0; four < 16; ++four) {  // rounds at a time
      const __m128i constants = _mm_load_si128(reinterpret_cast<const __m128i*>(kSha256Constants) + four);
#pragma GCC unroll 4
      for (int lane = 0; lane < kLanes; ++lane) {
        __m128i* w = schedule[lane];
        const __m128i now = w[four & 3], last = w[(four + 3) & 3];
        const __m128i sum = _mm_add_epi32(now, constants);
        cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], sum);
        abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], _mm_shuffle_epi32(sum, 0x0e));
        if (four < 12) {  // the words of four rounds, four steps ahead
          const __m128i seven_back = _mm_alignr_epi8(last, w[(four + 2) & 3], 4);
          const __m128i partial = _mm_add_epi32(_mm_sha256msg1_epu32(now, w[(four + 1) & 3]), seven_back);
          w[four & 3] = _mm_sha256msg2_epu32(partial, last);
        }
      }
    }
#pragma GCC unroll 4
    for (int lane = 0; lane < kLanes; ++lane) {
      abef[lane] = _mm_add_epi32(abef[lane], abef_before[lane]);
      cdgh[lane] = _mm_add_epi32(cdgh[lane], cdgh_before[lane]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    auto* words = reinterpret_cast<__m128i*>(states[lane]);
    const __m128i feba = _mm_shuffle_epi32(abef[lane], 0x1b), dchg = _mm_shuffle_epi32(cdgh[lane], 0xb1);
    _mm_storeu_si128(words, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(words + 1, _mm_alignr_epi8(dchg, feba, 8));
  }
}

}  // namespace

void sha256_blocks_x86(int lanes, std::uint32_t* const* states, const std::uint8_t* const* data,
                       std::int64_t blocks) {
  static_assert(kSha256Narrow == 3);
  if (lanes == 1) advance<1>(states, data, blocks);
  if (lanes == 2) advance<2>(states, data, blocks);
  if (lanes == 3) advance<3>(states, data, blocks);
}

}  // namespace ratfast
#endif
