// An engine whose steps are counted and timed.
#pragma once

#include <span>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "scheduler/clock.h"
#include "server/metrics/serving_metrics.h"
#include "server/probe.h"
#include "server/step_clock.h"

namespace photon {

// Does what another engine does.
class MeasuredEngine final : public Engine {
 public:
  // All outlive it.
  MeasuredEngine(Engine* engine, const Clock* clock, ServingMetrics* metrics)
      : engine_(engine), clock_(clock), metrics_(metrics) {}

  const EngineShape& shape() const override { return engine_->shape(); }

  absl::Status Step(std::span<const PageCopy> copies, std::span<const Row> rows,
                    TokenSink& sink) override {
    const TimePoint begin = clock_->Now();
    step_clock_.Begin(begin);
    absl::Status status = engine_->Step(copies, rows, sink);
    step_clock_.End();
    // Probes are nobody's requests.
    if (rows.size() == 1 && rows[0].sampling.seed == kProbeSeed) return status;
    metrics_->ObserveStep(static_cast<int>(rows.size()), clock_->Now() - begin);
    return status;
  }

  // Of the step under way. Any thread.
  const StepClock& step_clock() const { return step_clock_; }

 private:
  Engine* const engine_;
  const Clock* const clock_;
  ServingMetrics* const metrics_;
  StepClock step_clock_;
};

}  // namespace photon
