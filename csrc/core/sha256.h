// SHA-256 (FIPS 180-4) of many messages at once, on several threads.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace ratfast {

// Whether this machine has the instructions, and RATFAST_CPU_CAPABILITY is not "default". Nothing else in
// here may be called without.
bool has_sha256();

using Bytes = std::span<const std::uint8_t>;
using Sha256Digest = std::array<std::uint8_t, 32>;

// Messages that become known piece by piece. Not for several threads at once.
class Sha256Streams {
 public:
  explicit Sha256Streams(std::size_t count);

  std::size_t count() const { return streams_.size(); }

  // Appends pieces[i], of any length, to message i, on up to this many threads, the calling one among them.
  void update(const std::vector<Bytes>& pieces, int threads);

  // Of message i as it is so far; more may follow.
  Sha256Digest digest(std::size_t i) const;

 private:
  struct Stream {
    std::array<std::uint32_t, 8> state;
    std::array<std::uint8_t, 64> rest;  // what does not fill a block yet: length % 64 bytes
    std::uint64_t length = 0;           // bytes so far
  };
  std::vector<Stream> streams_;
};

}  // namespace ratfast
