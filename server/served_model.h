// A model that is being served: its engines, the scheduler over them, the thread that runs steps,
// and the documents that its cache holds. A server has one; while another takes its place, two.
//
//   Create ──▶ Start ──▶ requests ──▶ Retire: the last ones end, the engines are freed
//
// Calls share it, so that what they refer to lives for as long as they do.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "scheduler/clock.h"
#include "scheduler/scheduler.h"
#include "server/call_registry.h"
#include "server/document_store.h"
#include "server/loaded_model.h"
#include "server/metrics/measured_engine.h"
#include "server/metrics/serving_metrics.h"
#include "server/options.h"
#include "server/step_clock.h"

namespace photon {

class ServedModel {
 public:
  // What is borrowed outlives the model.
  struct Environment {
    const Clock* clock = nullptr;
    ServingMetrics* metrics = nullptr;
    SchedulerOptions scheduler;
    DocumentLimits documents;
  };

  // kInvalidArgument: defaults, scheduler options or an engine that make no sense; every problem.
  static absl::StatusOr<std::shared_ptr<ServedModel>> Create(LoadedModel model,
                                                             const Environment& environment);

  // Ends at once what still runs.
  ~ServedModel();
  ServedModel(const ServedModel&) = delete;
  ServedModel& operator=(const ServedModel&) = delete;

  // --- Any thread ---

  const ModelFacts& facts() const { return facts_; }
  Scheduler& scheduler() { return *scheduler_; }
  const Scheduler& scheduler() const { return *scheduler_; }
  DocumentStore& documents() { return documents_; }
  CallRegistry& calls() { return calls_; }
  // As in LoadedModel.
  const std::string& directory() const { return directory_; }
  const std::string& version() const { return version_; }
  // 1 for the server's first model, one more for each that takes its place.
  int generation() const { return generation_; }
  // Since when the step under way has been; absent: there is none.
  std::optional<TimePoint> busy_since() const;

  // --- The owner's thread ---

  // Before anybody else knows the model.
  void set_generation(int generation) { generation_ = generation; }

  // Runs steps until the scheduler has drained or the engine fails; then calls `on_end`, on the
  // thread that ran them, with the engine's error. Once; before requests come.
  void Start(std::function<void(const absl::Status&)> on_end);

  // Takes no more requests, once those who have entered are through (see ModelHost); the accepted
  // ones have until `deadline`. Returns when the last has ended, and the engines are freed.
  void Retire(TimePoint deadline);

 private:
  friend class ModelHost;
  friend class ModelLease;

  ServedModel(LoadedModel model, std::vector<std::unique_ptr<MeasuredEngine>> measured,
              std::unique_ptr<Scheduler> scheduler, const Environment& environment);

  void RunSteps();

  const ModelFacts facts_;
  const std::string directory_;
  const std::string version_;
  int generation_ = 1;
  const Clock* const clock_;
  std::vector<std::shared_ptr<Engine>> engines_;  // empty: retired; outlive the scheduler
  const std::vector<std::unique_ptr<MeasuredEngine>> measured_;
  const std::unique_ptr<Scheduler> scheduler_;
  DocumentStore documents_;
  CallRegistry calls_;
  std::function<void(const absl::Status&)> on_end_;
  StepClock step_clock_;  // of what the loop thread does for a step

  std::mutex mutex_;
  std::condition_variable lease_ended_;
  int num_leases_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread loop_;
  absl::Status loop_status_;  // of the loop thread, read after it is joined
};

// Whoever holds one may submit requests to the model: it is not retired meanwhile, unless its time
// is up. For the time that a call needs to begin.
class ModelLease {
 public:
  ModelLease(ModelLease&& other) noexcept = default;
  ModelLease& operator=(ModelLease&& other) noexcept;
  ~ModelLease() { End(); }

  // Ends the lease, the model stays.
  void End();

  const std::shared_ptr<ServedModel>& model() const { return model_; }
  ServedModel* operator->() const { return model_.get(); }

 private:
  friend class ModelHost;
  explicit ModelLease(std::shared_ptr<ServedModel> model);

  std::shared_ptr<ServedModel> model_;
  bool holds_ = true;  // not ended; a lease without a model is none
};

// Which model new requests go to. Any thread.
class ModelHost {
 public:
  explicit ModelHost(std::shared_ptr<ServedModel> model) : current_(std::move(model)) {}

  ModelLease Enter() const;
  std::shared_ptr<ServedModel> current() const;

  // New requests go to `next`. The result is the model before, which still runs.
  std::shared_ptr<ServedModel> Replace(std::shared_ptr<ServedModel> next);

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<ServedModel> current_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace photon
