#include "server/model_reloader.h"

#include <spdlog/spdlog.h>

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/probe.h"

namespace photon {
namespace {

// What was done.
void AddCounters(SchedulerStats& sum, const SchedulerStats& other) {
  sum.steps += other.steps;
  sum.step_rows += other.step_rows;
  sum.prompt_tokens += other.prompt_tokens;
  sum.prompt_tokens_cached += other.prompt_tokens_cached;
  sum.generated_tokens += other.generated_tokens;
  sum.wasted_slots += other.wasted_slots;
  sum.page_copies += other.page_copies;
  sum.evictions += other.evictions;
  sum.preemptions += other.preemptions;
  sum.rejected_queue_full += other.rejected_queue_full;
  sum.rejected_deadline += other.rejected_deadline;
  for (int i = 0; i < kNumSequenceEnds; ++i) sum.finished[i] += other.finished[i];
  sum.step_time += other.step_time;
  sum.host_time += other.host_time;
}

}  // namespace

ModelReloader::ModelReloader(
    const Options& options, ModelHost* host, ModelLoader loader,
    ServedModel::Environment environment,
    std::function<void(const ServedModel*, const absl::Status&)> on_model_end)
    : options_(options),
      host_(host),
      loader_(std::move(loader)),
      environment_(environment),
      on_model_end_(std::move(on_model_end)) {}

ModelReloader::~ModelReloader() {
  Stop();
  std::thread thread;
  {
    std::lock_guard lock(mutex_);
    thread.swap(thread_);
  }
  if (thread.joinable()) thread.join();
}

absl::Status ModelReloader::Reload(const std::string& directory, Listener listener) {
  if (loader_ == nullptr) return absl::UnimplementedError("this server cannot load models");
  std::lock_guard lock(mutex_);
  if (stopped_) return absl::UnavailableError("the server is draining");
  if (running_) return absl::AbortedError("another reload is under way");
  running_ = true;
  if (thread_.joinable()) thread_.join();  // it has done its work
  const std::string path = directory.empty() ? host_->current()->directory() : directory;
  thread_ = std::thread([this, path, listener = std::move(listener)] { Run(path, listener); });
  return absl::OkStatus();
}

void ModelReloader::ReloadIfChanged() {
  const std::shared_ptr<ServedModel> model = host_->current();
  if (model->directory().empty() || DirectoryVersion(model->directory()) == model->version()) {
    return;
  }
  spdlog::info("{}: has changed", model->directory());
  const absl::Status status =
      Reload("", {.on_progress = [](const Progress&) {}, .on_end = [](const absl::Status&) {}});
  if (!status.ok()) spdlog::warn("not loaded: {}", std::string(status.message()));
}

void ModelReloader::Stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
}

void ModelReloader::Run(const std::string& directory, const Listener& listener) {
  const absl::Status status = Replace(directory, listener);
  if (!status.ok()) {
    spdlog::error("{}: not loaded: {}; what was served before stays", directory,
                  std::string(status.message()));
  }
  {
    std::lock_guard lock(mutex_);
    ++(status.ok() ? counts_.done : counts_.failed);
    running_ = false;
  }
  listener.on_end(status);
}

absl::Status ModelReloader::Replace(const std::string& directory, const Listener& listener) {
  const auto set_busy = [this](bool busy) {
    std::lock_guard lock(mutex_);
    busy_ = busy;
    return stopped_;
  };
  Progress progress = {.stage = Stage::kLoading, .generation = host_->current()->generation()};
  listener.on_progress(progress);
  set_busy(true);
  absl::StatusOr<LoadedModel> loaded = loader_(directory);
  if (set_busy(false)) return absl::UnavailableError("the server is draining");
  // The request is in order; what it asks for is not.
  if (absl::IsInvalidArgument(loaded.status())) {
    return absl::FailedPreconditionError(loaded.status().message());
  }
  if (!loaded.ok()) return loaded.status();

  progress.stage = Stage::kProbing;
  listener.on_progress(progress);
  auto created = ServedModel::Create(*std::move(loaded), environment_);
  if (!created.ok()) return absl::FailedPreconditionError(created.status().message());
  const std::shared_ptr<ServedModel> next = *std::move(created);
  next->set_generation(progress.generation + 1);
  // While it is a candidate, its failure is its own.
  const auto is_candidate = std::make_shared<std::atomic<bool>>(true);
  next->Start([this, is_candidate, model = next.get()](const absl::Status& status) {
    if (!*is_candidate) on_model_end_(model, status);
  });
  const auto probe = Probe::Submit(next->scheduler(), *environment_.clock, [] {});
  absl::Status proof = probe.status();
  if (probe.ok()) proof = (*probe)->Wait(options_.probe_timeout);
  if (absl::IsDeadlineExceeded(proof)) {
    std::lock_guard lock(mutex_);
    abandoned_.push_back(next);
    return proof;
  }
  if (!proof.ok()) {
    next->Retire(TimePoint::min());
    return absl::FailedPreconditionError(absl::StrCat("a probe: ", std::string(proof.message())));
  }

  std::shared_ptr<ServedModel> old;
  {
    std::lock_guard lock(mutex_);
    if (!stopped_) {
      *is_candidate = false;
      old = retiring_ = host_->Replace(next);
    }
  }
  if (old == nullptr) {
    next->Retire(TimePoint::min());
    return absl::UnavailableError("the server is draining");
  }
  const SchedulerStats left = old->scheduler().stats();
  progress = {.stage = Stage::kDraining,
              .num_running = left.num_running + left.num_waiting,
              .num_documents_ended = left.num_pins,
              .generation = next->generation()};
  spdlog::info("{}: serves new requests; {} go on with the model before, {} documents end with it",
               directory, progress.num_running, progress.num_documents_ended);
  listener.on_progress(progress);
  old->Retire(environment_.clock->Now() + options_.drain_timeout);
  {
    std::lock_guard lock(mutex_);
    AddCounters(retired_, old->scheduler().stats());
    retiring_ = nullptr;
  }
  retired_model_.notify_all();
  spdlog::info("the model before has ended");
  progress.stage = Stage::kDone;
  progress.num_running = 0;
  listener.on_progress(progress);
  return absl::OkStatus();
}

std::vector<std::shared_ptr<ServedModel>> ModelReloader::models() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<ServedModel>> models = {host_->current()};
  if (retiring_ != nullptr) models.push_back(retiring_);
  return models;
}

SchedulerStats ModelReloader::stats() const {
  std::lock_guard lock(mutex_);
  SchedulerStats stats = host_->current()->scheduler().stats();
  AddCounters(stats, retired_);
  if (retiring_ != nullptr) {
    const SchedulerStats other = retiring_->scheduler().stats();
    static_cast<DeviceStats&>(stats) += other;
    stats.num_waiting += other.num_waiting;
    AddCounters(stats, other);
  }
  return stats;
}

ModelReloader::Counts ModelReloader::counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

void ModelReloader::AwaitRetirement() {
  std::unique_lock lock(mutex_);
  retired_model_.wait(
      lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return retiring_ == nullptr; });
}

bool ModelReloader::is_busy() const {
  std::lock_guard lock(mutex_);
  return busy_ || !abandoned_.empty();
}

}  // namespace photon
