// The rounds of SHA-256 on several independent messages side by side, for machines with SHA instructions.
#pragma once

#include <cstdint>

namespace ratfast {

// Messages that advance together in one thread. The instructions of a single one wait for each other most of
// the time; beyond three the registers run out.
inline constexpr int kSha256Lanes = 3;

// Takes `blocks` blocks of 64 bytes of each of 1 to kSha256Lanes messages into their states, eight words
// each.
using Sha256Blocks = void (*)(int lanes, std::uint32_t* const* states, const std::uint8_t* const* data,
                              std::int64_t blocks);

#if defined(__x86_64__)
void sha256_blocks_x86(int lanes, std::uint32_t* const* states, const std::uint8_t* const* data,
                       std::int64_t blocks);
#endif

}  // namespace ratfast
