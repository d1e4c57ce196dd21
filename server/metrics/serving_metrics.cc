#include "server/metrics/serving_metrics.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <iterator>
#include <utility>

#include "server/metrics/process_metrics.h"

namespace photon {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

double Seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Families of one model.
class Exposition {
 public:
  explicit Exposition(const std::string& model_name) : model_name_(model_name) {}

  struct Value {
    double value = 0;
    std::vector<ClientMetric::Label> labels = {};
  };

  template <typename Number>
  void Gauge(const char* name, const char* help, Number value) {
    Gauges(name, help, {{.value = static_cast<double>(value)}});
  }
  void Gauges(const char* name, const char* help, const std::vector<Value>& values) {
    MetricFamily& family = Add(name, help, MetricType::Gauge);
    for (const Value& value : values) NewMetric(family, value.labels).gauge.value = value.value;
  }

  template <typename Number>
  void Counter(const char* name, const char* help, Number value) {
    Counters(name, help, {{.value = static_cast<double>(value)}});
  }
  void Counters(const char* name, const char* help, const std::vector<Value>& values) {
    MetricFamily& family = Add(name, help, MetricType::Counter);
    for (const Value& value : values) NewMetric(family, value.labels).counter.value = value.value;
  }

  void Histogram(const char* name, const char* help, const photon::Histogram& histogram) {
    NewMetric(Add(name, help, MetricType::Histogram), {}).histogram = histogram.Read();
  }

  void Append(std::vector<MetricFamily> families) {
    std::move(families.begin(), families.end(), std::back_inserter(families_));
  }

  std::string Text() const { return prometheus::TextSerializer().Serialize(families_); }

 private:
  MetricFamily& Add(const char* name, const char* help, MetricType type) {
    families_.push_back({.name = std::string("photon_") + name, .help = help, .type = type});
    return families_.back();
  }
  ClientMetric& NewMetric(MetricFamily& family, const std::vector<ClientMetric::Label>& labels) {
    ClientMetric& metric = family.metric.emplace_back();
    metric.label.push_back({"model_name", model_name_});
    metric.label.insert(metric.label.end(), labels.begin(), labels.end());
    return metric;
  }

  const std::string& model_name_;
  std::vector<MetricFamily> families_;
};

}  // namespace

std::string_view RequestEndName(RequestEnd end) {
  switch (end) {
    case RequestEnd::kStopToken:
      return "stop_token";
    case RequestEnd::kStopString:
      return "stop_string";
    case RequestEnd::kLength:
      return "length";
    case RequestEnd::kDeadline:
      return "deadline";
    case RequestEnd::kCancelled:
      return "cancelled";
    case RequestEnd::kDrain:
      return "drain";
    case RequestEnd::kStalled:
      return "stalled";
    case RequestEnd::kEngineFailed:
      return "engine_failed";
  }
  return "unknown";
}

// From what the fastest engine does to what an operator would call an outage.
ServingMetrics::ServingMetrics(std::string model_name, std::string version,
                               const EngineShape& shape)
    : model_name_(std::move(model_name)),
      version_(std::move(version)),
      time_to_first_token_(OneTwoFive(0.0005, 50)),
      inter_token_latency_(OneTwoFive(0.00001, 5)),
      time_per_output_token_(OneTwoFive(0.00001, 5)),
      e2e_request_latency_(OneTwoFive(0.001, 500)),
      request_queue_time_(OneTwoFive(0.0001, 100)),
      request_prefill_time_(OneTwoFive(0.0005, 50)),
      step_duration_(OneTwoFive(0.0001, 10)),
      step_rows_(PowersOfTwo(shape.max_rows)) {}

void ServingMetrics::ObserveStep(int rows, Duration time) {
  step_rows_.Observe(rows);
  step_duration_.Observe(Seconds(time));
}

std::string ServingMetrics::Text(const SchedulerStats& stats, const Model& model,
                                 std::span<const Refusals> refusals) const {
  Exposition text(model_name_);
  text.Gauges("build_info", "Version of the server; always 1.",
              {{.value = 1, .labels = {{"version", version_}}}});
  text.Gauges("cache_config_info", "Shape of the latent cache; always 1.",
              {{.value = 1,
                .labels = {{"page_tokens", std::to_string(model.page_tokens)},
                           {"num_pages", std::to_string(model.num_pages)}}}});
  text.Gauge("model_generation",
             "1 for the model that the server began with, one more for each that took its place.",
             model.generation);
  text.Counters(
      "model_reloads_total", "Attempts to replace the model by one from disk.",
      {{.value = static_cast<double>(model.reloads_done), .labels = {{"outcome", "done"}}},
       {.value = static_cast<double>(model.reloads_failed), .labels = {{"outcome", "failed"}}}});
  text.Gauge("num_requests_running", "Requests that hold cache pages, paused ones included.",
             stats.num_running);
  text.Gauge("num_requests_paused", "Of them, those whose readers do not keep up.",
             stats.num_paused);
  text.Gauge("num_requests_waiting", "Requests that wait for their turn.", stats.num_waiting);
  const int kept = stats.pages_in_use + stats.pages_pinned;
  text.Gauge("kv_cache_usage_ratio", "Share of cache pages that cannot be had for new requests.",
             stats.num_pages == 0 ? 0.0 : static_cast<double>(kept) / stats.num_pages);
  const auto pages = [](const char* state, int count) {
    return Exposition::Value{.value = static_cast<double>(count), .labels = {{"state", state}}};
  };
  text.Gauges("latent_pages", "Cache pages by state.",
              {pages("free", stats.pages_free), pages("in_use", stats.pages_in_use),
               pages("cached", stats.pages_cached), pages("pinned", stats.pages_pinned)});
  std::vector<Exposition::Value> running_of_devices, pages_of_devices;
  for (size_t i = 0; i < stats.devices.size(); ++i) {
    const DeviceStats& device = stats.devices[i];
    const std::string name = std::to_string(i);
    running_of_devices.push_back(
        {.value = static_cast<double>(device.num_running), .labels = {{"device", name}}});
    for (const auto& [state, count] :
         {std::pair("free", device.pages_free), std::pair("in_use", device.pages_in_use),
          std::pair("cached", device.pages_cached), std::pair("pinned", device.pages_pinned)}) {
      pages_of_devices.push_back(
          {.value = static_cast<double>(count), .labels = {{"device", name}, {"state", state}}});
    }
  }
  text.Gauges("device_num_requests_running",
              "Requests that hold cache pages of a device, paused ones included.",
              running_of_devices);
  text.Gauges("device_latent_pages", "Cache pages of a device by state.", pages_of_devices);
  text.Gauge("num_pins", "Prompts that are kept in the cache, as documents are.", stats.num_pins);

  text.Counter("prompt_tokens_total", "Prompt tokens of requests that began to run.",
               stats.prompt_tokens);
  text.Counter("prompt_tokens_cached_total", "Of them, those found in the cache.",
               stats.prompt_tokens_cached);
  text.Counter("generation_tokens_total", "Tokens generated.", stats.generated_tokens);
  text.Counter("wasted_slots_total",
               "Tokens computed after a request's output had ended inside a meta-context.",
               stats.wasted_slots);
  std::vector<Exposition::Value> requests;
  for (int i = 0; i < kNumRequestEnds; ++i) {
    const std::string_view reason = RequestEndName(static_cast<RequestEnd>(i));
    const int64_t count = requests_[i].load(std::memory_order_relaxed);
    requests.push_back(
        {.value = static_cast<double>(count), .labels = {{"finish_reason", std::string(reason)}}});
  }
  text.Counters("requests_total", "Requests that ended, a sample each.", requests);
  const auto rejections = [](std::string_view reason, int64_t count) {
    return Exposition::Value{.value = static_cast<double>(count),
                             .labels = {{"reason", std::string(reason)}}};
  };
  std::vector<Exposition::Value> rejected = {rejections("queue_full", stats.rejected_queue_full),
                                             rejections("deadline", stats.rejected_deadline)};
  for (const Refusals& refusal : refusals) {
    rejected.push_back(rejections(refusal.reason, refusal.count));
  }
  text.Counters("admission_rejections_total", "Requests that were refused.", rejected);
  text.Counter("preemptions_total", "Requests that lost their cache pages to others for a time.",
               stats.preemptions);
  text.Counter("page_copies_total", "Cache pages that were copied, because requests part in them.",
               stats.page_copies);
  text.Counter("page_evictions_total", "Cached pages given up for new ones.", stats.evictions);
  text.Counter("host_seconds_total",
               "Time that the engine stood still between steps though there was work.",
               Seconds(stats.host_time));

  text.Histogram("time_to_first_token_seconds", "From a request's arrival to its first token.",
                 time_to_first_token_);
  text.Histogram("inter_token_latency_seconds",
                 "Time between tokens of a stream; tokens that come together share it.",
                 inter_token_latency_);
  text.Histogram("time_per_output_token_seconds",
                 "A request's mean time per token after the first.", time_per_output_token_);
  text.Histogram("e2e_request_latency_seconds", "From a request's arrival to its end.",
                 e2e_request_latency_);
  text.Histogram("request_queue_time_seconds", "From a request's arrival to its first step.",
                 request_queue_time_);
  text.Histogram("request_prefill_time_seconds", "From a request's first step to its first token.",
                 request_prefill_time_);
  text.Histogram("step_duration_seconds", "Time of an engine step.", step_duration_);
  text.Histogram("step_rows", "Requests in an engine step.", step_rows_);
  text.Append(ProcessMetrics());
  return text.Text();
}

void SequenceMeter::OnTokens(size_t count, TimePoint now) {
  if (metrics_ == nullptr || count == 0) return;
  if (!std::exchange(has_token_, true)) {
    metrics_->time_to_first_token_.Observe(Seconds(now - submitted_));
    // What came together with the first token came in no time.
    if (count > 1) metrics_->inter_token_latency_.Observe(0, count - 1);
  } else if (last_.has_value()) {
    metrics_->inter_token_latency_.Observe(Seconds(now - *last_) / static_cast<double>(count),
                                           count);
  }
  last_ = now;
}

void SequenceMeter::OnEnd(RequestEnd end, const SequenceStats& stats) {
  if (metrics_ == nullptr) return;
  metrics_->requests_[static_cast<size_t>(end)].fetch_add(1, std::memory_order_relaxed);
  metrics_->e2e_request_latency_.Observe(Seconds(stats.finished - stats.submitted));
  metrics_->request_queue_time_.Observe(
      Seconds(stats.first_step.value_or(stats.finished) - stats.submitted));
  if (!stats.first_step.has_value() || !stats.first_token.has_value()) return;
  metrics_->request_prefill_time_.Observe(Seconds(*stats.first_token - *stats.first_step));
  if (stats.generated_tokens < 2) return;
  metrics_->time_per_output_token_.Observe(Seconds(stats.finished - *stats.first_token) /
                                           (stats.generated_tokens - 1));
}

}  // namespace photon
