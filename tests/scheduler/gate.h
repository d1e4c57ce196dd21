// What holds a thread up until a test lets it go.
#pragma once

#include <condition_variable>
#include <mutex>

namespace photon {

// Holds whoever passes until it is opened, once for each passage. It may be opened before.
class Gate {
 public:
  void Pass() {
    std::unique_lock lock(mutex_);
    opened_.wait(lock, [&] { return is_open_; });
    is_open_ = false;
  }
  void Open() {
    std::lock_guard lock(mutex_);
    is_open_ = true;
    opened_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool is_open_ = false;
};

}  // namespace photon
