// Which instruction set the loops use.
#pragma once

#include "leaf.h"

namespace ratfast {

// "avx512", "avx2" or "default": the widest one that this machine has, that was compiled for, and that the
// environment variable RATFAST_CPU_CAPABILITY, read once, allows.
const char* cpu_capability();

const Leaf& leaf();

// Whether this machine reads memory faster as a few long runs than as many side by side: measured so on AMD's
// Zen 3, and otherwise on Intel's Sapphire Rapids.
bool few_streams();

}  // namespace ratfast
