#include "server/supervisor.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace photon {
namespace {

// How often it looks: much more often than the limits that make sense.
constexpr std::chrono::milliseconds kLookInterval{100};

double Seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

std::optional<TimePoint> Earlier(std::optional<TimePoint> a, std::optional<TimePoint> b) {
  if (!a.has_value() || !b.has_value()) return a.has_value() ? a : b;
  return std::min(*a, *b);
}

}  // namespace

std::vector<std::string> SupervisorOptions::Validate() const {
  std::vector<std::string> problems;
  const auto expect_not_negative = [&](const char* name, std::chrono::milliseconds value) {
    if (value.count() >= 0) return;
    problems.push_back(absl::StrCat(name, ": expected 0 or more, got ", value.count(), " ms"));
  };
  expect_not_negative("max_step_age", max_step_age);
  expect_not_negative("step_timeout", step_timeout);
  expect_not_negative("probe_interval", probe_interval);
  if (step_timeout.count() > 0 && step_timeout < max_step_age) {
    problems.push_back(absl::StrCat("step_timeout: expected at least max_step_age, ",
                                    max_step_age.count(), " ms, got ", step_timeout.count(),
                                    " ms"));
  }
  return problems;
}

Supervisor::Supervisor(const SupervisorOptions& options, const Clock* clock, Hooks hooks)
    : options_(options), clock_(clock), hooks_(std::move(hooks)) {}

Supervisor::~Supervisor() {
  Stop();
}

void Supervisor::Start() {
  thread_ = std::thread([this] { Run(); });
}

void Supervisor::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Supervisor::Run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    woken_ = false;
    lock.unlock();
    Check();
    lock.lock();
    wake_.wait_for(lock, kLookInterval,
                   [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return woken_ || stopping_; });
  }
}

void Supervisor::Check() {
  if (stuck_) return;
  const std::vector<std::shared_ptr<ServedModel>> models = hooks_.models();
  const TimePoint now = clock_->Now();
  if (probe_ != nullptr) {
    const std::optional<absl::Status> result = probe_->result();
    if (result.has_value()) probe_.reset();
    if (result.has_value() && result->ok()) proven_ = true;
  }
  std::optional<TimePoint> since;
  for (const auto& model : models) since = Earlier(since, model->busy_since());
  if (probe_ != nullptr) since = Earlier(since, probe_->submitted());
  // A step that began and ended between two looks shows in what was done.
  const int64_t steps = models.front()->scheduler().stats().steps;
  if (since.has_value() || was_busy_ || steps != num_steps_) last_sign_ = now;
  was_busy_ = since.has_value();
  num_steps_ = steps;
  if (!since.has_value()) ProbeIfIdle(*models.front(), now);

  const Duration age = since.has_value() ? now - *since : Duration(0);
  if (options_.step_timeout.count() > 0 && age >= options_.step_timeout) {
    stuck_ = true;
    hooks_.on_stuck(absl::InternalError(
        absl::StrCat("the engine is stuck: a step has taken ", Seconds(age), " s so far, and ",
                     Seconds(options_.step_timeout), " s are allowed (step-timeout)")));
    return;
  }
  const bool is_late = options_.max_step_age.count() > 0 && age >= options_.max_step_age;
  const bool healthy = proven_ && !is_late;
  if (healthy == healthy_) return;
  healthy_ = healthy;
  if (is_late) {
    spdlog::error("a step has taken {:.1f} s so far: not ready until it ends", Seconds(age));
  }
  hooks_.set_healthy(healthy);
}

void Supervisor::ProbeIfIdle(ServedModel& model, TimePoint now) {
  if (probe_ != nullptr) return;
  const bool is_due =
      options_.probe_interval.count() > 0 && now - last_sign_ >= options_.probe_interval;
  if (proven_ && !is_due) return;
  const SchedulerStats stats = model.scheduler().stats();
  // Whoever waits will do, and a probe needs a page of each device.
  const bool is_full = std::any_of(
      stats.devices.begin(), stats.devices.end(),
      [](const DeviceStats& device) { return device.pages_free + device.pages_cached == 0; });
  if (stats.num_running + stats.num_waiting > 0 || is_full) return;
  auto probe = Probe::Submit(model.scheduler(), *clock_, [this] {
    {
      std::lock_guard lock(mutex_);
      woken_ = true;
    }
    wake_.notify_one();
  });
  // A server that drains, or has just got its fill of work, needs none.
  if (!probe.ok()) return;
  probe_ = *std::move(probe);
  last_sign_ = now;
}

}  // namespace photon
