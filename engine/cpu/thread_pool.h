// A fixed set of threads for data-parallel loops.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace photon {

// Threads block while there is nothing to do, so that a shared machine keeps its cores; between
// loops that follow at once they wait busily for a moment. ParallelFor is called by one thread at a
// time.
class ThreadPool {
 public:
  // num_threads >= 1 counts the calling thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end, thread) over a partition of [0, count) into contiguous ranges of at
  // least `grain` items (so small loops run on the caller alone), and returns when all have
  // returned. `thread` is below num_threads() and differs between concurrent calls.
  void ParallelFor(int64_t count, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end, int thread)> body);

 private:
  struct Loop {
    absl::FunctionRef<void(int64_t, int64_t, int)> body;
    int64_t count;
    int ranges;
  };

  void Work(int thread);
  void RunRange(const Loop& loop, int range);

  std::vector<std::thread> workers_;
  const Loop* loop_ = nullptr;           // published by generation_, read by workers
  std::atomic<uint32_t> generation_{0};  // one more per loop
  std::atomic<int> pending_{0};          // workers that have not yet finished this generation
  std::atomic<bool> stop_{false};
};

}  // namespace photon
