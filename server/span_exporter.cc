#include "server/span_exporter.h"

#include <re2/re2.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/http/api_error.h"
#include "server/request_id.h"

namespace photon {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using Json = nlohmann::ordered_json;
using std::chrono::milliseconds;

constexpr size_t kMaxQueued = 4096;
constexpr size_t kBatch = 512;
constexpr milliseconds kInterval{1000};
constexpr milliseconds kPatience{5000};
constexpr milliseconds kLastPatience{2000};
constexpr uint64_t kMaxAnswerBytes = 64 << 10;

// Numbers of OTLP.
constexpr int kKindServer = 2;
constexpr int kStatusError = 2;

std::string RandomId(int num_words) {
  std::string id;
  while (num_words-- > 0) {
    // An id of zeros alone is none.
    absl::StrAppend(&id, absl::Hex(RandomBits() | 1, absl::kZeroPad16));
  }
  return id;
}

Json Text(std::string_view key, std::string_view value) {
  return {{"key", key}, {"value", {{"stringValue", value}}}};
}

// Numbers of 64 bits are strings in protobuf's JSON.
Json Number(std::string_view key, int64_t value) {
  return {{"key", key}, {"value", {{"intValue", std::to_string(value)}}}};
}

std::string UnixNanos(std::chrono::system_clock::time_point time) {
  return std::to_string(
      std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count());
}

// Whether the server is to blame, as OpenTelemetry has it for servers.
bool IsServersFault(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDataLoss:
      return true;
    default:
      return false;
  }
}

Json Attributes(const RequestSpan& span, const std::string& model_name) {
  const RequestName& name = span.name;
  Json attributes = Json::array();
  if (name.service.empty()) {
    attributes.push_back(Text("http.request.method", "POST"));
    attributes.push_back(Text("url.path", absl::StrCat("/v1/", std::string(name.method))));
    // Of a stream that fails half way, what it would have been had it failed at once.
    attributes.push_back(
        Number("http.response.status_code", span.status.ok() ? 200 : HttpStatusOf(span.status)));
  } else {
    attributes.push_back(Text("rpc.system", "grpc"));
    attributes.push_back(Text("rpc.service", name.service));
    attributes.push_back(Text("rpc.method", name.method));
    attributes.push_back(Number("rpc.grpc.status_code", static_cast<int>(span.status.code())));
  }
  attributes.push_back(Text("gen_ai.operation.name", "text_completion"));
  attributes.push_back(Text("gen_ai.request.model", model_name));
  attributes.push_back(Text("photon.request_id", name.id));
  if (!span.summary.has_value()) return attributes;
  const RequestSummary& summary = *span.summary;
  attributes.push_back(Number("gen_ai.usage.input_tokens", summary.prompt_tokens));
  attributes.push_back(Number("gen_ai.usage.output_tokens", summary.generated_tokens));
  attributes.push_back(Number("photon.cached_tokens", summary.cached_tokens));
  attributes.push_back(Number("photon.sequences", summary.sequences));
  attributes.push_back(Number("photon.steps", summary.steps));
  if (!summary.finish.empty()) {
    attributes.push_back(
        {{"key", "gen_ai.response.finish_reasons"},
         {"value",
          {{"arrayValue", {{"values", Json::array({{{"stringValue", summary.finish}}})}}}}}});
  }
  if (!summary.caller.empty()) attributes.push_back(Text("photon.caller", summary.caller));
  return attributes;
}

// When the sequence that ended last got its place and its first token.
Json Events(const RequestSpan& span) {
  Json events = Json::array();
  if (!span.summary.has_value() || span.summary->steps == 0) return events;
  const auto after = [&](double wait_ms) {
    const auto wait = std::chrono::duration<double, std::milli>(wait_ms);
    return UnixNanos(span.name.received +
                     std::chrono::duration_cast<std::chrono::system_clock::duration>(wait));
  };
  const RequestSummary& summary = *span.summary;
  events.push_back({{"timeUnixNano", after(summary.queue_ms)}, {"name", "admitted"}});
  if (summary.generated_tokens > 0) {
    events.push_back(
        {{"timeUnixNano", after(summary.queue_ms + summary.prefill_ms)}, {"name", "first_token"}});
  }
  return events;
}

Json SpanJson(const RequestSpan& span, const std::string& model_name) {
  const RequestName& name = span.name;
  const bool has_trace = !name.trace.trace_id.empty();
  Json json = {{"traceId", has_trace ? name.trace.trace_id : RandomId(2)}, {"spanId", RandomId(1)}};
  if (has_trace) json["parentSpanId"] = name.trace.parent_id;
  json["name"] = name.service.empty()
                     ? absl::StrCat("POST /v1/", std::string(name.method))
                     : absl::StrCat(std::string(name.service), "/", std::string(name.method));
  json["kind"] = kKindServer;
  json["startTimeUnixNano"] = UnixNanos(name.received);
  json["endTimeUnixNano"] = UnixNanos(span.ended);
  json["attributes"] = Attributes(span, model_name);
  json["events"] = Events(span);
  if (IsServersFault(span.status.code())) {
    json["status"] = {{"code", kStatusError}, {"message", std::string(span.status.message())}};
  }
  return json;
}

// kUnavailable: the collector does not take it.
absl::Status Post(const SpanExporter::Endpoint& endpoint, std::string body, milliseconds patience) {
  asio::io_context io;
  asio::ip::tcp::resolver resolver(io);
  beast::error_code error;
  const auto addresses = resolver.resolve(endpoint.host, endpoint.port, error);
  if (error) return absl::UnavailableError(error.message());

  http::request<http::string_body> request{http::verb::post, endpoint.path + "/v1/traces", 11};
  request.set(http::field::host, endpoint.host + ":" + endpoint.port);
  request.set(http::field::content_type, "application/json");
  request.set(http::field::user_agent, "photon/" PHOTON_VERSION);
  request.keep_alive(false);
  request.body() = std::move(body);
  request.prepare_payload();

  beast::tcp_stream stream(io);
  stream.expires_after(patience);
  beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(kMaxAnswerBytes);
  // One after the other: blocking calls know no time limit.
  const auto on_read = [&](beast::error_code result, size_t) { error = result; };
  const auto on_written = [&](beast::error_code result, size_t) {
    error = result;
    if (!result) http::async_read(stream, buffer, parser, on_read);
  };
  stream.async_connect(addresses, [&](beast::error_code result, const auto&) {
    error = result;
    if (!result) http::async_write(stream, request, on_written);
  });
  io.run();
  if (error) return absl::UnavailableError(error.message());
  const unsigned code = parser.get().result_int();
  if (code / 100 == 2) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("it answers with status ", code));
}

}  // namespace

std::string OtlpJson(const std::vector<RequestSpan>& spans, const std::string& model_name) {
  Json list = Json::array();
  for (const RequestSpan& span : spans) list.push_back(SpanJson(span, model_name));
  const Json resource = {
      {"attributes",
       {Text("service.name", "photon-server"), Text("service.version", PHOTON_VERSION)}}};
  const Json scope = {{"name", "photon-server"}, {"version", PHOTON_VERSION}};
  const Json scope_spans = {{"scope", scope}, {"spans", std::move(list)}};
  const Json json = {
      {"resourceSpans",
       Json::array({{{"resource", resource}, {"scopeSpans", Json::array({scope_spans})}}})}};
  // Ids and names are clients' bytes.
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

absl::StatusOr<SpanExporter::Endpoint> SpanExporter::Endpoint::Parse(const std::string& url) {
  static const RE2 pattern(R"(http://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(/.*)?)");
  Endpoint endpoint;
  if (!RE2::FullMatch(url, pattern, &endpoint.host, &endpoint.port, &endpoint.path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected http://HOST:PORT of a collector, got ", url));
  }
  if (endpoint.host.front() == '[')
    endpoint.host = endpoint.host.substr(1, endpoint.host.size() - 2);
  if (endpoint.port.empty()) endpoint.port = "4318";
  while (!endpoint.path.empty() && endpoint.path.back() == '/') endpoint.path.pop_back();
  return endpoint;
}

SpanExporter::SpanExporter(Endpoint endpoint, std::string model_name)
    : endpoint_(std::move(endpoint)),
      model_name_(std::move(model_name)),
      thread_([this] { Run(); }) {}

SpanExporter::~SpanExporter() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void SpanExporter::Add(RequestSpan span) {
  if (!span.name.trace.trace_id.empty() && !span.name.trace.is_sampled) return;
  bool is_full_batch = false;
  {
    std::lock_guard lock(mutex_);
    if (queue_.size() >= kMaxQueued) {
      ++num_dropped_;
      return;
    }
    queue_.push_back(std::move(span));
    is_full_batch = queue_.size() == kBatch;
  }
  if (is_full_batch) changed_.notify_one();
}

void SpanExporter::Run() {
  std::optional<std::chrono::steady_clock::time_point> give_up;
  while (true) {
    std::vector<RequestSpan> batch;
    milliseconds patience = kPatience;
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kInterval, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || queue_.size() >= kBatch;
      });
      if (stopping_) {
        const auto now = std::chrono::steady_clock::now();
        if (!give_up.has_value()) give_up = now + kLastPatience;
        patience = std::chrono::duration_cast<milliseconds>(*give_up - now);
        if (queue_.empty() || patience.count() <= 0) return;
      }
      const auto end = queue_.begin() + static_cast<ptrdiff_t>(std::min(queue_.size(), kBatch));
      batch.assign(std::make_move_iterator(queue_.begin()), std::make_move_iterator(end));
      queue_.erase(queue_.begin(), end);
    }
    if (!batch.empty()) Send(batch, patience);
  }
}

void SpanExporter::Send(const std::vector<RequestSpan>& spans, milliseconds patience) {
  const absl::Status sent = Post(endpoint_, OtlpJson(spans, model_name_), patience);
  const bool was_failing = std::exchange(is_failing_, !sent.ok());
  int64_t num_dropped = 0;
  {
    std::lock_guard lock(mutex_);
    if (!sent.ok()) num_dropped_ += static_cast<int64_t>(spans.size());
    // While it fails, one line is enough.
    if (!was_failing || sent.ok()) num_dropped = std::exchange(num_dropped_, 0);
  }
  if (num_dropped == 0) return;
  if (sent.ok()) {
    spdlog::warn("traces: {} spans were dropped meanwhile", num_dropped);
  } else {
    spdlog::warn("traces: {}:{} does not take spans: {}; {} are dropped, and what follows",
                 endpoint_.host, endpoint_.port, std::string(sent.message()), num_dropped);
  }
}

}  // namespace photon
