#include "tests/cuda_on_cpu/block.h"

#include <sys/mman.h>

#include <bit>
#include <boost/context/fiber.hpp>
#include <boost/context/preallocated.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#ifdef CUDA_ON_CPU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

namespace cuda_on_cpu {
namespace {

using boost::context::fiber;

// Sanitizers make frames larger.
constexpr size_t kStackBytes = 128 << 10;
// Not a power of two: the tops of all stacks would share a line of the cache.
constexpr size_t kStackStride = kStackBytes + 17 * 64;
constexpr unsigned char kUnwritten = 0xff;  // NaNs
// Watched beyond the end of dynamic shared memory.
constexpr size_t kGuardBytes = 64;

alignas(16) thread_local unsigned char dynamic_shared[kMaxSharedBytes + kGuardBytes];

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "a kernel on block (%u, %u, %u), thread %u: %s\n", blockIdx.x, blockIdx.y,
               blockIdx.z, threadIdx.x, what);
  std::abort();
}

// The memory is the pool's.
struct NoAllocator {
  boost::context::stack_context allocate() { std::abort(); }
  void deallocate(boost::context::stack_context&) {}
};

struct Thread {
  int index = 0;  // in the block
  bool at_barrier = false;
  fiber own;  // while it does not run
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

struct Warp {
  // Of this exchange and the last one, which not every lane may have seen yet.
  ShownByWarp shown[2];
  unsigned exchange = 0;
  unsigned alive = 0;    // lanes that have not exited
  unsigned arrived = 0;  // of them
};

// The fibers of one thread of the process, and the block that they run.
class Block {
 public:
  Block() {
    void* stacks = mmap(nullptr, kStackStride * kMaxThreads, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) Die("no memory for stacks");
    stacks_ = static_cast<std::byte*>(stacks);
  }
  ~Block() {
    body_ = nullptr;  // fibers end
    for (Thread& thread : threads_) SwitchTo(thread);
    munmap(stacks_, kStackStride * kMaxThreads);
  }

  void Run(int num_threads, const std::function<void()>& body) {
    body_ = &body;
    num_exited_ = num_at_barrier_ = 0;
    warps_.assign((num_threads + kWarpSize - 1) / kWarpSize, {});
    while (static_cast<int>(threads_.size()) < num_threads) AddThread();
    num_threads_ = num_threads;
    for (int i = 0; i < num_threads; ++i) {
      threads_[i].at_barrier = false;
      warps_[i / kWarpSize].alive |= 1u << i % kWarpSize;
      ready_.push_back(&threads_[i]);
    }
    Suspend();  // until no thread is ready
    if (num_exited_ != num_threads) Die("waits at a barrier to which others do not come");
  }

  int lane() const { return current_->index % kWarpSize; }

  void AwaitAll() {
    current_->at_barrier = true;
    ++num_at_barrier_;
    if (!ReleaseBarrier()) Suspend();
  }

  const ShownByWarp& Exchange(const Shown& shown) {
    Warp& warp = warps_[current_->index / kWarpSize];
    const ShownByWarp& all = warp.shown[warp.exchange % 2];
    warp.shown[warp.exchange % 2].lanes[lane()] = shown;
    warp.arrived |= 1u << lane();
    if (!ReleaseWarp(current_->index / kWarpSize)) Suspend();
    return all;
  }

 private:
  void AddThread() {
    threads_.emplace_back();
    Thread& thread = threads_.back();
    thread.index = static_cast<int>(threads_.size()) - 1;
    std::byte* stack = stacks_ + kStackStride * thread.index;
    thread.stack = stack;
    thread.stack_bytes = kStackBytes;
    boost::context::stack_context context;
    context.sp = stack + kStackBytes;
    context.size = kStackBytes;
    thread.own =
        fiber(std::allocator_arg, boost::context::preallocated(context.sp, kStackBytes, context),
              NoAllocator(), [this, index = thread.index](fiber&& from) {
                Arrived(std::move(from), nullptr);
                Live(index);
                return Leave();
              });
  }

  // A fiber's life: one thread of each block in turn.
  void Live(int index) {
    while (body_ != nullptr) {
      (*body_)();
      ++num_exited_;
      warps_[index / kWarpSize].alive &= ~(1u << index % kWarpSize);
      ReleaseBarrier();
      ReleaseWarp(index / kWarpSize);
      Suspend();
    }
  }

  // Goes on with any thread that is ready, until this one is and has its turn.
  void Suspend() {
    if (ready_.empty()) return SwitchTo(caller_);
    std::swap(ready_[random_() % ready_.size()], ready_.back());
    Thread& next = *ready_.back();
    ready_.pop_back();
    SwitchTo(next);
  }

  void SwitchTo(Thread& next) {
    Thread& self = *current_;
    left_ = &self;
    current_ = &next;
    threadIdx = {static_cast<unsigned>(next.index), 0, 0};
#ifdef CUDA_ON_CPU_ASAN
    __sanitizer_start_switch_fiber(&self.fake_stack, next.stack, next.stack_bytes);
#endif
    fiber from = std::move(next.own).resume();
    Arrived(std::move(from), self.fake_stack);
  }

  // On the stack that has been switched to: keeps where the thread that was left goes on.
  void Arrived(fiber&& from, [[maybe_unused]] void* fake_stack) {
#ifdef CUDA_ON_CPU_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, &left_->stack, &left_->stack_bytes);
#endif
    left_->own = std::move(from);
  }

  // The end of a fiber.
  fiber Leave() {
    left_ = std::exchange(current_, &caller_);
#ifdef CUDA_ON_CPU_ASAN
    __sanitizer_start_switch_fiber(nullptr, caller_.stack, caller_.stack_bytes);
#endif
    return std::move(caller_.own);
  }

  // Lets all threads go on once every one that lives waits. The one that runs goes on anyway.
  bool ReleaseBarrier() {
    if (num_at_barrier_ == 0 || num_at_barrier_ + num_exited_ < num_threads_) return false;
    num_at_barrier_ = 0;
    for (int i = 0; i < num_threads_; ++i) {
      Thread& thread = threads_[i];
      if (std::exchange(thread.at_barrier, false) && &thread != current_) ready_.push_back(&thread);
    }
    return true;
  }

  bool ReleaseWarp(int index) {
    Warp& warp = warps_[index];
    if (warp.arrived == 0 || warp.arrived != warp.alive) return false;
    for (unsigned left = std::exchange(warp.arrived, 0); left != 0; left &= left - 1) {
      Thread& thread = threads_[index * kWarpSize + std::countr_zero(left)];
      if (&thread != current_) ready_.push_back(&thread);
    }
    warp.shown[++warp.exchange % 2] = {};
    return true;
  }

  // Threads stay where they are.
  static std::vector<Thread> ReservedThreads() {
    std::vector<Thread> threads;
    threads.reserve(kMaxThreads);
    return threads;
  }

  std::byte* stacks_;
  std::vector<Thread> threads_ = ReservedThreads();
  const std::function<void()>* body_ = nullptr;
  int num_threads_ = 0, num_exited_ = 0, num_at_barrier_ = 0;
  std::vector<Warp> warps_;
  std::vector<Thread*> ready_;
  Thread caller_;  // of Run
  Thread* current_ = &caller_;
  Thread* left_ = nullptr;  // the one before
  std::minstd_rand random_;
};

Block& OwnBlock() {
  static thread_local Block block;
  return block;
}

}  // namespace

void RunGrid(dim3 grid, int threads_per_block, size_t shared_bytes,
             const std::function<void()>& thread) {
  gridDim = grid;
  blockDim = dim3(threads_per_block);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        std::memset(dynamic_shared, kUnwritten, shared_bytes + kGuardBytes);
        OwnBlock().Run(threads_per_block, thread);
        for (size_t i = shared_bytes; i < shared_bytes + kGuardBytes; ++i) {
          if (dynamic_shared[i] != kUnwritten) Die("wrote beyond its dynamic shared memory");
        }
      }
    }
  }
}

unsigned char* DynamicShared() {
  return dynamic_shared;
}

int Lane() {
  return OwnBlock().lane();
}

const ShownByWarp& Exchange(unsigned mask, const Shown& shown) {
  if (mask != 0xffffffffu) Die("only whole warps are known here");
  return OwnBlock().Exchange(shown);
}

// Of A [16, 16] a lane holds, two to a register, columns 2 t and 2 t + 1 of rows g and g + 8, then
// the columns 8 further; of B [16, 8] rows 2 t and 2 t + 1 of column g, then 8 further; of the
// result columns 2 t and 2 t + 1 of rows g and g + 8. g is lane / 4, t lane % 4.
void MultiplyAdd(float (&acc)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                 unsigned b1) {
  const auto pair = [](unsigned low, unsigned high) { return uint64_t{high} << 32 | low; };
  const ShownByWarp& warp = Exchange(0xffffffffu, {{pair(a0, a1), pair(a2, a3), pair(b0, b1)}});
  const auto element = [&](int lane, int reg, int half) {
    const uint64_t word = warp.lanes[lane].words[reg / 2] >> reg % 2 * 32;
    return std::bit_cast<float>(static_cast<uint32_t>(word >> half * 16) << 16);
  };
  const int g = Lane() / 4, t = Lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = 2 * t + i % 2;  // rows g and g + 8
    for (int k = 0; k < 16; ++k) {
      const float a = element(g * 4 + k % 8 / 2, k / 8 * 2 + row, k % 2);
      const float b = element(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
      acc[i] += a * b;
    }
  }
}

}  // namespace cuda_on_cpu

void __syncthreads() {
  cuda_on_cpu::OwnBlock().AwaitAll();
}

void __syncwarp(unsigned mask) {
  cuda_on_cpu::Exchange(mask, {});
}

unsigned __ballot_sync(unsigned mask, bool condition) {
  const cuda_on_cpu::ShownByWarp& warp = cuda_on_cpu::Exchange(mask, {{condition, 0, 0}});
  unsigned ballot = 0;
  for (int lane = 0; lane < cuda_on_cpu::kWarpSize; ++lane) {
    if (warp.lanes[lane].words[0] != 0) ballot |= 1u << lane;
  }
  return ballot;
}
