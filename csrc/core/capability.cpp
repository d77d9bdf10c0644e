#include "capability.h"

#include <cstdlib>
#include <cstring>

namespace ratfast {
namespace {

struct Level {
  const char* name;
  const Leaf* leaf;
};

Level choose() {
#if defined(__x86_64__)
  const char* wish = std::getenv("RATFAST_CPU_CAPABILITY");
  const auto wished = [wish](const char* name) { return wish != nullptr && std::strcmp(wish, name) == 0; };
  const bool avx2 = !wished("default") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && !wished("avx2") && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512) return {"avx512", &leaf_avx512};
  if (avx2) return {"avx2", &leaf_avx2};
#endif
  return {"default", &leaf_default};
}

const Level& level() {
  static const Level chosen = choose();
  return chosen;
}

}  // namespace

const char* cpu_capability() { return level().name; }

const Leaf& leaf() { return *level().leaf; }

bool few_streams() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

}  // namespace ratfast
