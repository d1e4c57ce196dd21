#include "bench/serving_metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace photon {
namespace {

double Seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

double Milliseconds(Duration duration) {
  return Seconds(duration) * 1e3;
}

void AddPercentiles(nlohmann::json& metrics, const std::string& name,
                    const std::vector<double>& values) {
  metrics[name + "_p50"] = Percentile(values, 50);
  metrics[name + "_p95"] = Percentile(values, 95);
  metrics[name + "_p99"] = Percentile(values, 99);
  metrics[name + "_max"] = Percentile(values, 100);
}

// Gaps that end, and tokens that come, from `begin` until `end`.
struct Flow {
  std::vector<double> gaps_ms;
  int64_t tokens = 0;

  void Add(const SequenceRecord& sequence, TimePoint begin, TimePoint end) {
    for (size_t i = 0; i < sequence.arrivals.size(); ++i) {
      const Arrival& arrival = sequence.arrivals[i];
      if (arrival.time < begin || arrival.time >= end) continue;
      tokens += arrival.tokens;
      if (i > 0) gaps_ms.push_back(Milliseconds(arrival.time - sequence.arrivals[i - 1].time));
    }
  }
};

void AddSteps(nlohmann::json& metrics, const SchedulerStats& begin, const SchedulerStats& end) {
  const double steps = static_cast<double>(end.steps - begin.steps);
  const double per_step = steps > 0 ? 1 / steps : 0;
  const double step_seconds = Seconds(end.step_time - begin.step_time);
  const double host_seconds = Seconds(end.host_time - begin.host_time);
  const double generated = static_cast<double>(end.generated_tokens - begin.generated_tokens);
  const double wasted = static_cast<double>(end.wasted_slots - begin.wasted_slots);
  metrics["steps"] = steps;
  metrics["rows_per_step"] = static_cast<double>(end.step_rows - begin.step_rows) * per_step;
  metrics["generated_per_step"] = generated * per_step;
  metrics["step_ms"] = step_seconds * 1e3 * per_step;
  metrics["host_us_per_step"] = host_seconds * 1e6 * per_step;
  metrics["host_percent"] = step_seconds > 0 ? 100 * host_seconds / step_seconds : 0;
  metrics["wasted_percent"] = generated + wasted > 0 ? 100 * wasted / (generated + wasted) : 0;
}

bool KeepsTo(const ServiceLevel& level, const CallRecord& call, const SequenceRecord& sequence) {
  const TimePoint first = sequence.arrivals.front().time, last = sequence.arrivals.back().time;
  int tokens = -sequence.arrivals.front().tokens;
  for (const Arrival& arrival : sequence.arrivals) tokens += arrival.tokens;
  return Milliseconds(first - call.due) <= level.ttft_ms &&
         (tokens <= 0 || Milliseconds(last - first) / tokens <= level.token_ms);
}

}  // namespace

double Percentile(std::vector<double> values, double percent) {
  if (values.empty()) return 0;
  const auto rank =
      static_cast<size_t>(std::ceil(percent / 100 * static_cast<double>(values.size())));
  const auto place = values.begin() + static_cast<std::ptrdiff_t>(std::max<size_t>(rank, 1) - 1);
  std::nth_element(values.begin(), place, values.end());
  return *place;
}

double Median(const std::vector<double>& values) {
  return Percentile(values, 50);
}

nlohmann::json ServingMetrics(const LoadRecord& record, const ServingFacts& facts,
                              const ServiceLevel& level) {
  const double seconds = Seconds(record.end - record.begin);
  const auto in_window = [&](TimePoint time) { return time >= record.begin && time < record.end; };
  Flow flow;
  std::vector<double> ttft_ms, e2e_ms, queue_ms;
  int64_t calls = 0, good_calls = 0, refused = 0, prompt_tokens = 0, cached_tokens = 0;
  for (const CallRecord& call : record.calls) {
    bool is_good = true;
    TimePoint done = TimePoint::min();
    for (const SequenceRecord& sequence : call.sequences) {
      flow.Add(sequence, record.begin, record.end);
      prompt_tokens += sequence.prompt_tokens;
      cached_tokens += sequence.cached_tokens;
      if (sequence.arrivals.empty()) continue;
      const TimePoint first = sequence.arrivals.front().time, last = sequence.arrivals.back().time;
      if (in_window(record.is_open ? call.due : first)) {
        ttft_ms.push_back(Milliseconds(first - call.due));
        queue_ms.push_back(sequence.queue_ms);
      }
      is_good = is_good && KeepsTo(level, call, sequence);
      done = std::max(done, last);
    }
    if (!in_window(record.is_open ? call.due : done)) continue;
    if (!call.status.ok()) {
      refused += absl::IsCancelled(call.status) ? 0 : 1;
      continue;
    }
    ++calls;
    good_calls += is_good ? 1 : 0;
    e2e_ms.push_back(Milliseconds(done - call.due));
  }

  nlohmann::json metrics;
  metrics["seconds"] = seconds;
  metrics["tokens_per_second"] = static_cast<double>(flow.tokens) / seconds;
  metrics["calls_per_second"] = static_cast<double>(calls) / seconds;
  metrics["good_calls_per_second"] = static_cast<double>(good_calls) / seconds;
  const double ended = static_cast<double>(calls + refused);
  metrics["good_percent"] = ended > 0 ? 100 * static_cast<double>(good_calls) / ended : 0;
  metrics["refused_percent"] = ended > 0 ? 100 * static_cast<double>(refused) / ended : 0;
  AddPercentiles(metrics, "ttft_ms", ttft_ms);
  AddPercentiles(metrics, "e2e_ms", e2e_ms);
  AddPercentiles(metrics, "queue_ms", queue_ms);
  AddPercentiles(metrics, "gap_ms", flow.gaps_ms);
  metrics["cached_percent"] = prompt_tokens > 0 ? 100 * static_cast<double>(cached_tokens) /
                                                      static_cast<double>(prompt_tokens)
                                                : 0.0;
  if (record.stats_at_begin.has_value() && record.stats_at_end.has_value()) {
    AddSteps(metrics, *record.stats_at_begin, *record.stats_at_end);
    metrics["peak_pages_in_use"] = record.peak_pages_in_use;
    metrics["peak_bytes_in_use"] = record.peak_pages_in_use * facts.page_bytes;
  }
  return metrics;
}

nlohmann::json ArrivalMetrics(const LoadRecord& record) {
  const CallRecord& arriving = record.calls.back();
  TimePoint first_token = TimePoint::max();
  for (const SequenceRecord& sequence : arriving.sequences) {
    first_token = std::min(first_token, sequence.arrivals.front().time);
  }
  // From when all streams flow.
  TimePoint flowing = record.begin;
  for (size_t i = 0; i + 1 < record.calls.size(); ++i) {
    for (const SequenceRecord& sequence : record.calls[i].sequences) {
      if (!sequence.arrivals.empty()) {
        flowing = std::max(flowing, sequence.arrivals.front().time);
      }
    }
  }
  nlohmann::json metrics;
  const auto add = [&](const std::string& name, TimePoint begin, TimePoint end) {
    Flow flow;
    for (size_t i = 0; i + 1 < record.calls.size(); ++i) {
      for (const SequenceRecord& sequence : record.calls[i].sequences) {
        flow.Add(sequence, begin, end);
      }
    }
    AddPercentiles(metrics, name + "_gap_ms", flow.gaps_ms);
    metrics[name + "_tokens_per_second"] =
        end > begin ? static_cast<double>(flow.tokens) / Seconds(end - begin) : 0;
  };
  add("before", flowing, arriving.sent);
  add("during", arriving.sent, first_token);
  add("after", first_token, record.end);
  metrics["arrival_ttft_ms"] = Milliseconds(first_token - arriving.sent);
  return metrics;
}

nlohmann::json MedianOf(const std::vector<nlohmann::json>& repeats) {
  nlohmann::json medians;
  for (const auto& [key, value] : repeats.front().items()) {
    std::vector<double> values;
    for (const nlohmann::json& repeat : repeats) values.push_back(repeat.at(key).get<double>());
    medians[key] = Median(values);
  }
  return medians;
}

}  // namespace photon
