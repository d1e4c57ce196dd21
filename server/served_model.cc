#include "server/served_model.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/generation_request.h"

namespace photon {

absl::StatusOr<std::shared_ptr<ServedModel>> ServedModel::Create(LoadedModel model,
                                                                 const Environment& environment) {
  model.facts.shape = ShapeOfAll(model.engines);
  const ModelFacts& facts = model.facts;
  const std::vector<GenerationMode>& modes = facts.shape.modes;
  std::vector<std::string> problems;
  if (std::find(modes.begin(), modes.end(), facts.default_mode) == modes.end()) {
    problems.push_back(absl::StrCat("default_mode: this model does not allow ",
                                    v1::GenerationMode_Name(ToProto(facts.default_mode))));
  }
  if (facts.default_max_tokens < 1) {
    problems.push_back(
        absl::StrCat("default_max_tokens: expected 1 or more, got ", facts.default_max_tokens));
  }
  std::vector<std::unique_ptr<MeasuredEngine>> measured;
  std::vector<Engine*> stepped;
  for (const std::shared_ptr<Engine>& engine : model.engines) {
    measured.push_back(
        std::make_unique<MeasuredEngine>(engine.get(), environment.clock, environment.metrics));
    stepped.push_back(measured.back().get());
  }
  auto scheduler = Scheduler::Create(stepped, environment.clock, environment.scheduler);
  if (!scheduler.ok()) problems.emplace_back(scheduler.status().message());
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
  return std::shared_ptr<ServedModel>(
      new ServedModel(std::move(model), std::move(measured), *std::move(scheduler), environment));
}

ServedModel::ServedModel(LoadedModel model, std::vector<std::unique_ptr<MeasuredEngine>> measured,
                         std::unique_ptr<Scheduler> scheduler, const Environment& environment)
    : facts_(std::move(model.facts)),
      directory_(std::move(model.directory)),
      version_(std::move(model.version)),
      clock_(environment.clock),
      engines_(std::move(model.engines)),
      measured_(std::move(measured)),
      scheduler_(std::move(scheduler)),
      documents_(environment.documents, environment.clock, scheduler_.get()) {}

ServedModel::~ServedModel() {
  scheduler_->Drain(TimePoint::min());
  if (loop_.joinable()) loop_.join();
}

void ServedModel::Start(std::function<void(const absl::Status&)> on_end) {
  on_end_ = std::move(on_end);
  loop_ = std::thread([this] { RunSteps(); });
}

void ServedModel::RunSteps() {
  absl::Status status;
  while (status.ok() && scheduler_->WaitForWork()) {
    step_clock_.Begin(clock_->Now());
    status = scheduler_->RunStep();
    step_clock_.End();
  }
  if (!status.ok()) spdlog::critical("the engine failed: {}", status.ToString());
  loop_status_ = status;
  on_end_(status);
}

std::optional<TimePoint> ServedModel::busy_since() const {
  std::optional<TimePoint> since = step_clock_.began();
  for (const auto& engine : measured_) {
    const std::optional<TimePoint> began = engine->step_clock().began();
    if (began.has_value() && (!since.has_value() || *began < *since)) since = began;
  }
  return since;
}

void ServedModel::Retire(TimePoint deadline) {
  if (const TimePoint now = clock_->Now(); now < deadline) {
    std::unique_lock lock(mutex_);
    lease_ended_.wait_for(lock, deadline - now, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return num_leases_ == 0;
    });
  }
  scheduler_->Drain(deadline);
  if (loop_.joinable()) loop_.join();
  // After a failure other engines may still be in a step, which the scheduler's destructor awaits.
  if (loop_status_.ok()) engines_.clear();
}

ModelLease::ModelLease(std::shared_ptr<ServedModel> model) : model_(std::move(model)) {
  std::lock_guard lock(model_->mutex_);
  ++model_->num_leases_;
}

ModelLease& ModelLease::operator=(ModelLease&& other) noexcept {
  if (this == &other) return *this;
  End();
  model_ = std::move(other.model_);
  holds_ = other.holds_;
  return *this;
}

void ModelLease::End() {
  if (model_ == nullptr || !std::exchange(holds_, false)) return;
  std::lock_guard lock(model_->mutex_);
  if (--model_->num_leases_ == 0) model_->lease_ended_.notify_all();
}

ModelLease ModelHost::Enter() const {
  // Under the lock: whoever replaces the model afterwards finds the lease.
  std::lock_guard lock(mutex_);
  return ModelLease(current_);
}

std::shared_ptr<ServedModel> ModelHost::current() const {
  std::lock_guard lock(mutex_);
  return current_;
}

std::shared_ptr<ServedModel> ModelHost::Replace(std::shared_ptr<ServedModel> next) {
  std::lock_guard lock(mutex_);
  return std::exchange(current_, std::move(next));
}

}  // namespace photon
