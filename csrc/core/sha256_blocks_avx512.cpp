// Compiled with AVX-512 instructions: no code that other files share may be in here.
#include "sha256_blocks.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace ratfast {
namespace {

using Vector = __m512i;

template <int kA, int kB, int kC>
inline __attribute__((always_inline)) Vector rotations(Vector x) {
  return _mm512_ternarylogic_epi32(_mm512_ror_epi32(x, kA), _mm512_ror_epi32(x, kB), _mm512_ror_epi32(x, kC),
                                   0x96);  // exclusive or of the three
}

template <int kA, int kB, int kShift>
inline __attribute__((always_inline)) Vector rotations_and_shift(Vector x) {
  return _mm512_ternarylogic_epi32(_mm512_ror_epi32(x, kA), _mm512_ror_epi32(x, kB),
                                   _mm512_srli_epi32(x, kShift), 0x96);
}

// 16 x 16 words: row i becomes column i.
inline __attribute__((always_inline)) void transpose(Vector* rows) {
  Vector pairs[16], fours[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // fours[i + j]: of rows i to i + 3 the columns j, j + 4, j + 8, j + 12
    fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vector a = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
    const Vector b = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xdd);
    const Vector c = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
    const Vector d = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    rows[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    rows[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}

}  // namespace

void sha256_blocks_avx512(int lanes, std::uint32_t* const* states, const std::uint8_t* const* data,
                          std::int64_t blocks) {
  alignas(64) std::uint32_t words[8][kSha256Wide];
  const std::uint8_t* messages[kSha256Wide];
  for (int lane = 0; lane < kSha256Wide; ++lane) {
    const int own = lane < lanes ? lane : 0;  // lanes without a message repeat the first
    messages[lane] = data[own];
    for (int word = 0; word < 8; ++word) words[word][lane] = states[own][word];
  }
  Vector state[8];
#pragma GCC unroll 8
  for (int word = 0; word < 8; ++word) state[word] = _mm512_load_si512(words[word]);
  const Vector big_endian = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203));
  for (std::int64_t block = 0; block < blocks; ++block) {
    Vector w[16];
#pragma GCC unroll 16
    for (int lane = 0; lane < kSha256Wide; ++lane) w[lane] = _mm512_loadu_si512(messages[lane] + 64 * block);
    transpose(w);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) w[i] = _mm512_shuffle_epi8(w[i], big_endian);
    Vector a = state[0], b = state[1], c = state[2], d = state[3];
    Vector e = state[4], f = state[5], g = state[6], h = state[7];
#pragma GCC unroll 64
    for (int i = 0; i < 64; ++i) {  // FIPS 180-4, section 6.2.2
      const Vector constant = _mm512_set1_epi32(static_cast<int>(kSha256Constants[i]));
      const Vector choice = _mm512_ternarylogic_epi32(e, f, g, 0xca);
      const Vector majority = _mm512_ternarylogic_epi32(a, b, c, 0xe8);
      Vector first = _mm512_add_epi32(_mm512_add_epi32(h, w[i & 15]), constant);
      first = _mm512_add_epi32(_mm512_add_epi32(first, choice), rotations<6, 11, 25>(e));
      const Vector second = _mm512_add_epi32(majority, rotations<2, 13, 22>(a));
      if (i < 48) {  // the word of 16 rounds ahead
        const Vector ahead = _mm512_add_epi32(rotations_and_shift<7, 18, 3>(w[(i + 1) & 15]),
                                              rotations_and_shift<17, 19, 10>(w[(i + 14) & 15]));
        w[i & 15] = _mm512_add_epi32(_mm512_add_epi32(w[i & 15], w[(i + 9) & 15]), ahead);
      }
      h = g, g = f, f = e, e = _mm512_add_epi32(d, first);
      d = c, c = b, b = a, a = _mm512_add_epi32(first, second);
    }
    const Vector after[8] = {a, b, c, d, e, f, g, h};
#pragma GCC unroll 8
    for (int word = 0; word < 8; ++word) state[word] = _mm512_add_epi32(state[word], after[word]);
  }
#pragma GCC unroll 8
  for (int word = 0; word < 8; ++word) _mm512_store_si512(words[word], state[word]);
  for (int lane = 0; lane < lanes; ++lane)
    for (int word = 0; word < 8; ++word) states[lane][word] = words[word][lane];
}

}  // namespace ratfast
#endif
