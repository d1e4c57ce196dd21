#include "server/request_log.h"

#include <spdlog/async.h>
#include <spdlog/fmt/chrono.h>
#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <utility>

#include "nlohmann/json.hpp"
#include "server/span_exporter.h"

namespace photon {
namespace {

using Json = nlohmann::ordered_json;

// The logger whose messages are JSON objects already; exists with LogFormat::kJson alone.
constexpr char kRequestLogger[] = "requests";

// Of the process, as the loggers are.
std::atomic<SpanExporter*> span_exporter = nullptr;

// Of clients' bytes, too.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& line) override {
    const auto time = std::chrono::floor<std::chrono::milliseconds>(message.time);
    const std::time_t seconds = std::chrono::system_clock::to_time_t(message.time);
    const auto level = spdlog::level::to_string_view(message.level);
    Json json = {{"time", fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(seconds),
                                      time.time_since_epoch().count() % 1000)},
                 {"level", std::string(level.data(), level.size())}};
    std::string payload(message.payload.data(), message.payload.size());
    const std::string_view logger(message.logger_name.data(), message.logger_name.size());
    std::string text;
    if (logger == kRequestLogger) {
      json["event"] = "request";
      text = Dump(json);
      text.back() = ',';
      text += payload.substr(1);
    } else {
      json["event"] = "server";
      json["message"] = std::move(payload);
      text = Dump(json);
    }
    text += '\n';
    line.append(text.data(), text.data() + text.size());
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

std::string TextLine(const RequestName& name, const absl::Status& status,
                     const std::optional<RequestSummary>& summary) {
  std::string line = fmt::format("method={} id={} status={}", name.method, name.id,
                                 absl::StatusCodeToString(status.code()));
  if (!name.trace.trace_id.empty()) line += fmt::format(" trace_id={}", name.trace.trace_id);
  if (summary.has_value()) {
    if (!summary->caller.empty()) line += fmt::format(" caller={}", summary->caller);
    line += fmt::format(" sequences={}", summary->sequences);
    if (!summary->finish.empty()) line += fmt::format(" finish={}", summary->finish);
    line += fmt::format(
        " prompt_tokens={} cached_tokens={} generated_tokens={} steps={} queue_ms={:.2f}"
        " prefill_ms={:.2f} decode_ms={:.2f}",
        summary->prompt_tokens, summary->cached_tokens, summary->generated_tokens, summary->steps,
        summary->queue_ms, summary->prefill_ms, summary->decode_ms);
  }
  if (!status.ok()) line += fmt::format(" error=\"{}\"", std::string(status.message()));
  return line;
}

std::string JsonLine(const RequestName& name, const absl::Status& status,
                     const std::optional<RequestSummary>& summary) {
  Json json = {{"method", name.method},
               {"id", name.id},
               {"status", absl::StatusCodeToString(status.code())}};
  if (!name.trace.trace_id.empty()) json["trace_id"] = name.trace.trace_id;
  if (!status.ok()) json["error"] = std::string(status.message());
  if (summary.has_value()) {
    if (!summary->caller.empty()) json["caller"] = summary->caller;
    json["sequences"] = summary->sequences;
    if (!summary->finish.empty()) json["finish_reason"] = summary->finish;
    json["prompt_tokens"] = summary->prompt_tokens;
    json["cached_tokens"] = summary->cached_tokens;
    json["generated_tokens"] = summary->generated_tokens;
    json["steps"] = summary->steps;
    json["queue_ms"] = summary->queue_ms;
    json["prefill_ms"] = summary->prefill_ms;
    json["decode_ms"] = summary->decode_ms;
  }
  return Dump(json);
}

}  // namespace

void StartLog(LogFormat format, spdlog::level::level_enum level) {
  spdlog::init_thread_pool(8192, 1);
  if (format == LogFormat::kText) {
    spdlog::set_default_logger(
        spdlog::create_async_nb<spdlog::sinks::stderr_color_sink_mt>("photon"));
    spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ %v");
  } else {
    const auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    const auto make_logger = [&](const char* name) {
      return std::make_shared<spdlog::async_logger>(name, sink, spdlog::thread_pool(),
                                                    spdlog::async_overflow_policy::overrun_oldest);
    };
    spdlog::register_logger(make_logger(kRequestLogger));
    spdlog::set_default_logger(make_logger("photon"));
    spdlog::set_formatter(std::make_unique<JsonFormatter>());
  }
  spdlog::set_level(level);
}

void ExportSpansTo(SpanExporter* exporter) {
  span_exporter = exporter;
}

void LogRequest(const RequestName& name, const absl::Status& status,
                const std::optional<RequestSummary>& summary) {
  if (SpanExporter* exporter = span_exporter) exporter->Add({name, status, summary});
  if (const auto json_log = spdlog::get(kRequestLogger)) {
    json_log->info("{}", JsonLine(name, status, summary));
  } else {
    spdlog::info("{}", TextLine(name, status, summary));
  }
}

}  // namespace photon
