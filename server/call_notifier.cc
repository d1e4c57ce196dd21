#include "server/call_notifier.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace photon {
namespace {

// A thread that has had work looks again after this, before it waits to be woken. With many calls
// a token comes every microsecond, and to wake a thread costs who notifies it more than that.
constexpr std::chrono::microseconds kPause{50};

}  // namespace

CallNotifier::CallNotifier(int num_threads) {
  for (int i = 0; i < num_threads; ++i) {
    Worker& worker = *workers_.emplace_back(std::make_unique<Worker>());
    worker.thread = std::thread([&worker] { Run(worker); });
  }
}

CallNotifier::~CallNotifier() {
  Stop();
}

int CallNotifier::DefaultThreads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 2, 1, 16);
}

void CallNotifier::Notify(int thread, std::weak_ptr<Notified> whom) {
  Worker& worker = *workers_[thread];
  {
    std::lock_guard lock(worker.mutex);
    worker.waiting.push_back(std::move(whom));
  }
  worker.changed.notify_one();
}

void CallNotifier::Stop() {
  for (const auto& worker : workers_) {
    {
      std::lock_guard lock(worker->mutex);
      worker->stopped = true;
    }
    worker->changed.notify_one();
  }
  for (const auto& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
  }
}

void CallNotifier::Run(Worker& worker) {
  std::vector<std::weak_ptr<Notified>> turn;
  for (;;) {
    turn.clear();
    {
      std::unique_lock lock(worker.mutex);
      worker.changed.wait(lock, [&worker]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(worker.mutex) {
        return worker.stopped || !worker.waiting.empty();
      });
      if (worker.waiting.empty()) return;
      turn.swap(worker.waiting);
    }
    for (const std::weak_ptr<Notified>& whom : turn) {
      if (const std::shared_ptr<Notified> notified = whom.lock()) notified->OnNotified();
    }
    std::this_thread::sleep_for(kPause);
  }
}

}  // namespace photon
