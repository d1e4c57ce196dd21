#include "server/auth/file_watch.h"

#include <sys/stat.h>

#include <utility>

namespace photon {
namespace {

int64_t Nanoseconds(const timespec& time) {
  return static_cast<int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

FileWatch::FileWatch(std::vector<std::string> paths, std::chrono::milliseconds interval,
                     std::function<void()> on_change)
    : paths_(std::move(paths)), interval_(interval), on_change_(std::move(on_change)) {
  thread_ = std::thread([this, seen = Look()]() mutable { Run(std::move(seen)); });
}

FileWatch::~FileWatch() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void FileWatch::Trigger() {
  {
    std::lock_guard lock(mutex_);
    triggered_ = true;
  }
  wake_.notify_all();
}

std::vector<FileWatch::Identity> FileWatch::Look() const {
  std::vector<Identity> identities(paths_.size());
  for (size_t i = 0; i < paths_.size(); ++i) {
    struct stat status;
    if (stat(paths_[i].c_str(), &status) != 0) continue;
    identities[i] = {.device = status.st_dev,
                     .inode = status.st_ino,
                     .size = static_cast<uint64_t>(status.st_size),
                     .modified_ns = Nanoseconds(status.st_mtim),
                     .changed_ns = Nanoseconds(status.st_ctim)};
  }
  return identities;
}

void FileWatch::Run(std::vector<Identity> seen) {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait_for(lock, interval_, [this] { return triggered_ || stopping_; });
    if (stopping_) return;
    const bool triggered = std::exchange(triggered_, false);
    lock.unlock();
    std::vector<Identity> now = Look();
    const bool changed = now != seen;
    seen = std::move(now);
    if (changed || triggered) on_change_();
    lock.lock();
  }
}

}  // namespace photon
