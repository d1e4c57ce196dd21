// Runs the threads of a kernel's blocks on the thread that calls, each as a fiber.
//
// Threads take turns in a random order, from one barrier (__syncthreads, or anything that a warp
// does together) to the next: a kernel that relies on an order, or forgets a barrier, soon gets
// something else than it should.
#pragma once

#include <functional>

#include "cuda_runtime_api.h"

namespace cuda_on_cpu {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxThreads = 1024;             // of a block
inline constexpr size_t kMaxSharedBytes = 48 << 10;  // of dynamic shared memory

// Aborts with what no kernel may do: threads that wait for each other at different barriers, or
// writes beyond the dynamic shared memory.
void RunGrid(dim3 grid, int threads_per_block, size_t shared_bytes,
             const std::function<void()>& thread);

}  // namespace cuda_on_cpu
