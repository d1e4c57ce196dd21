// The server's log: events, and a line for each request that a model was asked for and that ended.
// Who is refused for want of a key has none: strangers must not fill the log. Never what was asked
// or answered.
//
//   text   2026-05-01T12:00:00.000+0000 info method=Generate id=... status=OK finish=length ...
//   json
//   {"time":"2026-05-01T12:00:00.000Z","level":"info","event":"request","method":"Generate",...}
#pragma once

#include <spdlog/common.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "server/trace_context.h"

namespace photon {

enum class LogFormat : uint8_t { kText, kJson };

// Writes the log to the standard error from now on, on a thread of its own: a log that nobody reads
// never holds up a step, but drops its oldest lines. Once, before anything is logged.
void StartLog(LogFormat format, spdlog::level::level_enum level);

// What became of the sequences of a request: sums, and how the last one to end went.
struct RequestSummary {
  std::string caller;  // the name of its key; empty without one
  int64_t sequences = 0;
  std::string finish;  // "length", ...; empty where nothing was to be generated
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t generated_tokens = 0;
  int steps = 0;
  double queue_ms = 0;
  double prefill_ms = 0;
  double decode_ms = 0;
};

// Which request a line is about. Made when it comes.
struct RequestName {
  std::string_view service;  // "photon.v1.GenerationService"; empty: of the HTTP port
  std::string_view method;   // "Generate"
  std::string id;
  TraceContext trace;
  std::chrono::system_clock::time_point received = std::chrono::system_clock::now();
};

class SpanExporter;

// From now on each line has a span, too; null: no longer. The exporter outlives the requests.
void ExportSpansTo(SpanExporter* exporter);

// `summary` is absent where nothing ran. Any thread.
void LogRequest(const RequestName& name, const absl::Status& status,
                const std::optional<RequestSummary>& summary);

}  // namespace photon
