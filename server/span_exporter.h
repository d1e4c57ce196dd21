// Traces for those who want them: a span for each request that the log has a line for, sent to an
// OpenTelemetry collector as OTLP over HTTP, in JSON.
//
//   any thread ──▶ Add ──▶ queue (bounded: what does not fit is dropped) ──▶ a thread ──▶ collector
//
// Nobody waits for the collector. What it does not take at once is dropped, and the log says how
// much. Spans have no word of what was asked or answered.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/request_log.h"

namespace photon {

// A request that has ended.
struct RequestSpan {
  RequestName name;
  absl::Status status;
  std::optional<RequestSummary> summary;
  std::chrono::system_clock::time_point ended = std::chrono::system_clock::now();
};

// The body of an ExportTraceServiceRequest. Requests without a trace get one of their own.
std::string OtlpJson(const std::vector<RequestSpan>& spans, const std::string& model_name);

class SpanExporter {
 public:
  // Where /v1/traces is.
  struct Endpoint {
    std::string host;
    std::string port;
    std::string path;  // before /v1/traces; mostly empty

    // "http://HOST[:PORT][/PATH]". kInvalidArgument: it is none.
    static absl::StatusOr<Endpoint> Parse(const std::string& url);
  };

  SpanExporter(Endpoint endpoint, std::string model_name);

  // Lets what is on its way have its five seconds, then sends what is left, for two at most.
  ~SpanExporter();
  SpanExporter(const SpanExporter&) = delete;
  SpanExporter& operator=(const SpanExporter&) = delete;

  // Unless the client's trace is not sampled. Never blocks. Any thread.
  void Add(RequestSpan span);

 private:
  void Run();
  void Send(const std::vector<RequestSpan>& spans, std::chrono::milliseconds patience);

  const Endpoint endpoint_;
  const std::string model_name_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<RequestSpan> queue_ ABSL_GUARDED_BY(mutex_);
  int64_t num_dropped_ ABSL_GUARDED_BY(mutex_) = 0;  // and not in the log yet
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_failing_ = false;  // of the thread
  std::thread thread_;       // the last member: it uses the others
};

}  // namespace photon
