// Notices when files change, by looking at them now and then: one stat each. Works for files that
// are written in place, renamed over, or reached through links that are switched, as Kubernetes
// does with secrets.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"

namespace photon {

class FileWatch {
 public:
  // Looks every `interval` and calls `on_change`, on a thread of its own, when any of `paths` is
  // not what it was. The first look is before the constructor returns: what changes after that is
  // noticed.
  FileWatch(std::vector<std::string> paths, std::chrono::milliseconds interval,
            std::function<void()> on_change);
  ~FileWatch();
  FileWatch(const FileWatch&) = delete;
  FileWatch& operator=(const FileWatch&) = delete;

  // Calls `on_change` soon, changed or not. Any thread.
  void Trigger();

 private:
  // What a file's contents cannot change without; all zero where there is no file.
  struct Identity {
    uint64_t device = 0, inode = 0, size = 0;
    int64_t modified_ns = 0, changed_ns = 0;
    bool operator==(const Identity&) const = default;
  };

  std::vector<Identity> Look() const;
  void Run(std::vector<Identity> seen);

  const std::vector<std::string> paths_;
  const std::chrono::milliseconds interval_;
  const std::function<void()> on_change_;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool triggered_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace photon
