// What the machine can do at most, measured beside the engine.
#pragma once

#include "engine/cpu/kernels.h"

namespace photon {

// Bytes per second of reading memory front to back, far more than the caches hold: the best of
// several passes with `threads` threads.
double ReadBandwidth(int threads);

// Floating-point operations per second of matrix products whose operands stay in the cache.
double ProductThroughput(int threads, Isa isa, bool bf16);

}  // namespace photon
