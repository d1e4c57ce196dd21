// The scheduler and an engine in this process: everything but text and network.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "bench/serving_target.h"
#include "engine/engine.h"
#include "engine/model/config.h"
#include "scheduler/clock.h"
#include "scheduler/scheduler.h"

namespace photon {

// Of a checkpoint in an engine of this process.
ServingFacts FactsOf(const ModelConfig& config, const EngineShape& shape);

class InProcessTarget final : public ServingTarget {
 public:
  // `engine` outlives the target.
  static absl::StatusOr<std::unique_ptr<InProcessTarget>> Create(const ModelConfig& config,
                                                                 Engine* engine,
                                                                 const SchedulerOptions& options);
  // Ends what runs.
  ~InProcessTarget() override;

  const ServingFacts& facts() const override { return facts_; }
  CallId Start(ServingCall call, OnDone on_done) override;
  void Cancel(CallId call) override;
  absl::StatusOr<std::string> CreateDocument(const std::vector<TokenId>& tokens) override;
  absl::Status DeleteDocument(const std::string& document) override;
  std::optional<SchedulerStats> stats() const override { return scheduler_->stats(); }

 private:
  struct RunningCall;
  class CallListener;
  class PinListener;
  struct Document {
    std::vector<TokenId> tokens;
    std::optional<PinId> pin;
  };

  InProcessTarget(ServingFacts facts, std::unique_ptr<SteadyClock> clock,
                  std::unique_ptr<Scheduler> scheduler);
  void Finish(RunningCall& call);

  const ServingFacts facts_;
  const std::unique_ptr<SteadyClock> clock_;
  const std::unique_ptr<Scheduler> scheduler_;

  std::mutex mutex_;
  int64_t next_call_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<CallId, std::vector<SequenceId>> sequences_ ABSL_GUARDED_BY(mutex_);  // of calls
  std::map<std::string, Document> documents_ ABSL_GUARDED_BY(mutex_);

  std::thread loop_;  // the last member: it runs the scheduler's steps
};

}  // namespace photon
