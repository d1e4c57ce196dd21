// Whether the server gets on with its work.
//
//   a step younger than max_step_age, or none      ──▶ healthy
//   an older one                                   ──▶ not, until it ends
//   one older than step_timeout                    ──▶ stuck, for good: somebody has to end this
//
// A server that nobody asks for anything proves itself with a probe of every device now and then,
// and before it first counts as healthy.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "scheduler/clock.h"
#include "server/probe.h"
#include "server/served_model.h"
#include "server/supervisor_options.h"

namespace photon {

class Supervisor {
 public:
  struct Hooks {
    // Those in memory; the one that new requests go to is the first.
    std::function<std::vector<std::shared_ptr<ServedModel>>()> models;
    // Called when it changes; unhealthy at first.
    std::function<void(bool)> set_healthy;
    // Called once, with the cause. No health afterwards.
    std::function<void(const absl::Status&)> on_stuck;
  };

  // `clock` outlives it. Watches once it is started.
  Supervisor(const SupervisorOptions& options, const Clock* clock, Hooks hooks);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Looks now and then, on a thread of its own, from now on. Models have been started.
  void Start();
  // Looks no more.
  void Stop();

  // One look, for tests; otherwise of the thread's.
  void Check();

 private:
  void Run();
  void ProbeIfIdle(ServedModel& model, TimePoint now);

  const SupervisorOptions options_;
  const Clock* const clock_;
  const Hooks hooks_;

  // Of the thread that looks.
  std::shared_ptr<Probe> probe_;  // the one under way
  bool proven_ = false;           // a probe has passed
  bool healthy_ = false;
  bool stuck_ = false;
  bool was_busy_ = false;
  int64_t num_steps_ = 0;
  TimePoint last_sign_;  // of life

  std::mutex mutex_;
  std::condition_variable wake_;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace photon
