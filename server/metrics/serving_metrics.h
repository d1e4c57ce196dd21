// What the server tells a Prometheus. docs/metrics.md lists every name.
//
//   Scheduler::stats() ───────────────┐  gauges and counters, read when somebody scrapes
//   MeasuredEngine ──▶ ServingMetrics ├──▶ Text()
//   SequenceMeter  ──▶   histograms   ┘
//
// Observing is a few atomic additions, so it is done on the thread that runs steps.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "scheduler/clock.h"
#include "scheduler/scheduler.h"
#include "scheduler/sequence.h"
#include "server/metrics/histogram.h"

namespace photon {

// How a request, that is one sample of a prompt or question, ended.
enum class RequestEnd : uint8_t {
  kStopToken,
  kStopString,
  kLength,
  kDeadline,
  kCancelled,
  kDrain,
  kStalled,
  kEngineFailed,
};
inline constexpr int kNumRequestEnds = 8;
std::string_view RequestEndName(RequestEnd end);  // "stop_token", ...

// Any thread.
class ServingMetrics {
 public:
  // Requests that were refused before the scheduler saw them, since the start.
  struct Refusals {
    std::string_view reason;  // in snake_case
    int64_t count = 0;
  };

  ServingMetrics(std::string model_name, std::string version, const EngineShape& shape);

  // What is known of the model that new requests go to, and of those before it.
  struct Model {
    int page_tokens = 0;
    int num_pages = 0;
    int generation = 1;
    int64_t reloads_done = 0;
    int64_t reloads_failed = 0;
  };

  // In Prometheus's text format.
  std::string Text(const SchedulerStats& stats, const Model& model,
                   std::span<const Refusals> refusals) const;

  void ObserveStep(int rows, Duration time);

 private:
  friend class SequenceMeter;

  const std::string model_name_;
  const std::string version_;

  Histogram time_to_first_token_;
  Histogram inter_token_latency_;
  Histogram time_per_output_token_;
  Histogram e2e_request_latency_;
  Histogram request_queue_time_;
  Histogram request_prefill_time_;
  Histogram step_duration_;
  Histogram step_rows_;
  std::array<std::atomic<int64_t>, kNumRequestEnds> requests_ = {};
};

// Measures one request; for the thread that calls its listener.
class SequenceMeter {
 public:
  // `metrics` outlives the meter; null: nothing is measured.
  SequenceMeter(ServingMetrics* metrics, TimePoint submitted)
      : metrics_(metrics), submitted_(submitted) {}

  // The stream got `count` more tokens, which share the time since the ones before.
  void OnTokens(size_t count, TimePoint now);

  // The sequence is to pause, because its reader does not keep up: the time until it goes on is not
  // the server's.
  void OnPause() { last_.reset(); }

  void OnEnd(RequestEnd end, const SequenceStats& stats);

 private:
  ServingMetrics* const metrics_;
  const TimePoint submitted_;
  bool has_token_ = false;
  std::optional<TimePoint> last_;
};

}  // namespace photon
