// Tells readers of calls that there is something to read, on threads of its own: what a reader then
// does, encoding and writing, takes many times as long as a scheduler spends on a token, and the
// scheduler's loop has every sequence to care for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"

namespace photon {

class Notified {
 public:
  virtual ~Notified() = default;
  virtual void OnNotified() = 0;
};

class CallNotifier {
 public:
  explicit CallNotifier(int num_threads);
  // As Stop().
  ~CallNotifier();

  // One for each pair of processors, up to sixteen.
  static int DefaultThreads();

  // The thread that a new call is to be told on. Any thread.
  int AssignThread() { return static_cast<int>(next_++ % workers_.size()); }

  // Has `whom`, if it still lives, told soon on `thread`, in the order of these calls. Any thread.
  void Notify(int thread, std::weak_ptr<Notified> whom);

  // Tells those who wait, and ends the threads. Nothing may be notified from here on.
  void Stop();

 private:
  struct Worker {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<std::weak_ptr<Notified>> waiting ABSL_GUARDED_BY(mutex);
    bool stopped ABSL_GUARDED_BY(mutex) = false;
    std::thread thread;
  };

  static void Run(Worker& worker);

  std::vector<std::unique_ptr<Worker>> workers_;
  std::atomic<unsigned> next_ = 0;
};

}  // namespace photon
