#include "engine/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>

namespace photon {
namespace {

// Longest busy wait before a thread blocks. The loops of a step follow one another within tens of
// microseconds, and waking a blocked thread takes longer than most of them; an idle pool sleeps.
constexpr std::chrono::microseconds kBusyWait(50);

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until `value` differs from `old`, and returns it.
template <typename T>
T WaitForChange(const std::atomic<T>& value, T old) {
  const auto deadline = std::chrono::steady_clock::now() + kBusyWait;
  do {
    for (int i = 0; i < 32; ++i) {
      const T now = value.load(std::memory_order_acquire);
      if (now != old) return now;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { Work(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain,
                             absl::FunctionRef<void(int64_t, int64_t, int)> body) {
  if (count <= 0) return;
  const int64_t ranges = std::min<int64_t>(num_threads(), count / std::max<int64_t>(grain, 1));
  if (ranges <= 1) return body(0, count, 0);
  const Loop loop{body, count, static_cast<int>(ranges)};
  loop_ = &loop;
  pending_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  RunRange(loop, 0);
  for (int left = pending_.load(std::memory_order_acquire); left != 0;) {
    left = WaitForChange(pending_, left);
  }
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  while (true) {
    seen = WaitForChange(generation_, seen);
    if (stop_.load()) return;
    if (thread < loop_->ranges) RunRange(*loop_, thread);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

void ThreadPool::RunRange(const Loop& loop, int range) {
  const int64_t begin = loop.count * range / loop.ranges;
  const int64_t end = loop.count * (range + 1) / loop.ranges;
  loop.body(begin, end, range);
}

}  // namespace photon
