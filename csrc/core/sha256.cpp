#include "sha256.h"

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "parallel.h"
#include "sha256_blocks.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ratfast {
namespace {

constexpr std::int64_t kBlock = 64;
// Blocks of a message between two looks at which messages are longest.
constexpr std::int64_t kTurn = std::int64_t{1} << 13;
// Blocks that are worth a thread's start.
constexpr std::int64_t kGrain = std::int64_t{1} << 12;
// FIPS 180-4, section 5.3.3.
constexpr std::array<std::uint32_t, 8> kInitialState = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

struct Ways {
  Sha256Blocks narrow = nullptr;
  Sha256Blocks wide = nullptr;
};

Ways find_ways() {
  Ways found;
#if defined(__x86_64__)
  const char* wish = std::getenv("RATFAST_CPU_CAPABILITY");
  const auto wished = [wish](const char* name) { return wish != nullptr && std::strcmp(wish, name) == 0; };
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool sha = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (ebx >> 29 & 1) != 0;
  if (sha && !wished("default") && __builtin_cpu_supports("avx")) {  // avx has ssse3 and sse4.1
    found.narrow = &sha256_blocks_x86;
    if (!wished("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
      found.wide = &sha256_blocks_avx512;
  }
#endif
  return found;
}

const Ways& ways() {
  static const Ways found = find_ways();
  return found;
}

// The whole blocks of a message that are still to be taken in.
struct Work {
  std::uint32_t* state;
  const std::uint8_t* data;
  std::int64_t blocks;
};

bool shorter(const Work& a, const Work& b) { return a.blocks < b.blocks; }

// Messages that threads advance in turns. Whoever is free takes those with most ahead of them, so that all
// end at about the same time however lengths differ, and no more than leaves the other threads their share.
class Turns {
 public:
  Turns(std::vector<Work> works, std::int64_t threads)
      : waiting_(std::move(works)), unfinished_(std::ssize(waiting_)), idle_(threads), threads_(threads) {
    std::make_heap(waiting_.begin(), waiting_.end(), shorter);
  }

  // Runs until all messages are done.
  void run() {
    std::array<Work, kSha256Wide> held;
    while (const int lanes = take(held)) {
      std::array<std::uint32_t*, kSha256Wide> states;
      std::array<const std::uint8_t*, kSha256Wide> data;
      std::int64_t blocks = kTurn;
      for (int lane = 0; lane < lanes; ++lane) {
        states[lane] = held[lane].state;
        data[lane] = held[lane].data;
        blocks = std::min(blocks, held[lane].blocks);
      }
      const Sha256Blocks advance = lanes > kSha256Narrow ? ways().wide : ways().narrow;
      advance(lanes, states.data(), data.data(), blocks);
      give_back(held, lanes, blocks);
    }
  }

 private:
  // How many messages there were to take; 0 once all are done.
  int take(std::array<Work, kSha256Wide>& held) {
    std::unique_lock lock(mutex_);
    returned_.wait(lock, [this] { return !waiting_.empty() || unfinished_ == 0; });
    const std::int64_t number = std::min(wanted(), std::ssize(waiting_));
    for (std::int64_t lane = 0; lane < number; ++lane) {
      std::pop_heap(waiting_.begin(), waiting_.end(), shorter);
      held[lane] = waiting_.back();
      waiting_.pop_back();
    }
    if (number > 0) --idle_;
    return static_cast<int>(number);
  }

  // As many as the wide way is worth, if the other threads without messages still find some; else a share.
  std::int64_t wanted() const {
    const std::int64_t many =
        std::min<std::int64_t>(std::ssize(waiting_) - (idle_ - 1) * kSha256Narrow, kSha256Wide);
    if (ways().wide != nullptr && many >= kSha256WideFrom) return many;
    return std::min<std::int64_t>((unfinished_ + threads_ - 1) / threads_, kSha256Narrow);
  }

  void give_back(const std::array<Work, kSha256Wide>& held, int lanes, std::int64_t blocks) {
    {
      const std::lock_guard lock(mutex_);
      ++idle_;
      for (int lane = 0; lane < lanes; ++lane) {
        const Work& work = held[lane];
        if (work.blocks == blocks) {
          --unfinished_;
          continue;
        }
        waiting_.push_back({work.state, work.data + blocks * kBlock, work.blocks - blocks});
        std::push_heap(waiting_.begin(), waiting_.end(), shorter);
      }
    }
    returned_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<Work> waiting_;  // a heap, the longest first; never grows beyond its first size
  std::int64_t unfinished_;    // waiting or held by a thread
  std::int64_t idle_;          // threads that hold none
  const std::int64_t threads_;
};

}  // namespace

bool has_sha256() { return ways().narrow != nullptr; }

Sha256Streams::Sha256Streams(std::size_t count) : streams_(count, Stream{kInitialState, {}, 0}) {}

void Sha256Streams::update(const std::vector<Bytes>& pieces, int threads) {
  std::vector<Work> works;
  std::int64_t total = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    Stream& stream = streams_[i];
    Bytes piece = pieces[i];
    const auto kept = static_cast<std::size_t>(stream.length % kBlock);
    stream.length += piece.size();
    if (kept != 0) {
      const Bytes first = piece.first(std::min(piece.size(), kBlock - kept));
      std::copy(first.begin(), first.end(), stream.rest.begin() + kept);
      piece = piece.subspan(first.size());
      if (kept + first.size() < kBlock) continue;
      std::uint32_t* state = stream.state.data();
      const std::uint8_t* rest = stream.rest.data();
      ways().narrow(1, &state, &rest, 1);
    }
    const auto blocks = static_cast<std::int64_t>(piece.size() / kBlock);
    if (blocks != 0) works.push_back({stream.state.data(), piece.data(), blocks});
    total += blocks;
    const Bytes rest = piece.subspan(blocks * kBlock);
    std::copy(rest.begin(), rest.end(), stream.rest.begin());
  }
  if (works.empty()) return;
  const std::int64_t useful =
      std::clamp<std::int64_t>(std::min<std::int64_t>(threads, total / kGrain), 1, std::ssize(works));
  Turns turns(std::move(works), useful);
  ratfast::threads(static_cast<int>(useful))(useful, 1, [&](std::int64_t, std::int64_t) { turns.run(); });
}

Sha256Digest Sha256Streams::digest(std::size_t i) const {
  const Stream& stream = streams_[i];
  std::array<std::uint8_t, 2 * kBlock> end{};  // the rest, a one bit, zeros, and the number of bits
  const auto kept = static_cast<std::size_t>(stream.length % kBlock);
  std::copy_n(stream.rest.begin(), kept, end.begin());
  end[kept] = 0x80;
  const std::int64_t blocks = kept + 1 + sizeof stream.length > kBlock ? 2 : 1;
  for (int byte = 0; byte < 8; ++byte)
    end[blocks * kBlock - 1 - byte] = static_cast<std::uint8_t>(stream.length * 8 >> 8 * byte);
  auto state = stream.state;
  std::uint32_t* words = state.data();
  const std::uint8_t* data = end.data();
  ways().narrow(1, &words, &data, blocks);
  Sha256Digest digest;
  for (std::size_t byte = 0; byte < digest.size(); ++byte)
    digest[byte] = static_cast<std::uint8_t>(state[byte / 4] >> (24 - 8 * (byte % 4)));
  return digest;
}

}  // namespace ratfast
