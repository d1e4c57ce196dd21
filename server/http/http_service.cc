#include "server/http/http_service.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/generation_request.h"
#include "server/http/api_error.h"
#include "server/http/completion_call.h"
#include "server/http/completion_request.h"
#include "server/http/completion_response.h"
#include "server/http/page_files.h"
#include "server/random.h"
#include "server/request_id.h"
#include "server/request_log.h"

namespace photon {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kModelsPrefix = "/v1/models/";

// The page may load and ask for what this server serves, and nothing else.
constexpr char kContentSecurityPolicy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

HttpResponse JsonResponse(const Json& json, int status = 200) {
  HttpResponse response;
  response.head.status = status;
  response.head.headers = {{"content-type", "application/json"}, {"cache-control", "no-store"}};
  response.body = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  return response;
}

HttpResponse TextResponse(std::string text, int status, const char* type = "text/plain") {
  HttpResponse response;
  response.head.status = status;
  response.head.headers = {{"content-type", absl::StrCat(type, "; charset=utf-8")},
                           {"cache-control", "no-store"}};
  response.body = std::move(text);
  return response;
}

HttpResponse PageResponse(const PageFile& file) {
  HttpResponse response;
  response.head.headers = {{"content-type", file.content_type},
                           {"cache-control", "no-cache"},
                           {"content-security-policy", kContentSecurityPolicy},
                           {"referrer-policy", "no-referrer"}};
  response.body = std::string(file.content);
  return response;
}

std::string ModeName(GenerationMode mode) {
  switch (mode) {
    case GenerationMode::kExact:
      return "exact";
    case GenerationMode::kHierGen:
      return "hiergen";
    case GenerationMode::kRecGen:
      return "recgen";
  }
  return "";
}

bool IsJson(std::string_view content_type) {
  constexpr std::string_view kJson = "application/json";
  if (content_type.size() < kJson.size()) return false;
  const std::string_view rest = content_type.substr(kJson.size());
  return absl::EqualsIgnoreCase(std::string(content_type.substr(0, kJson.size())),
                                std::string(kJson)) &&
         (rest.empty() || rest.front() == ';' || rest.front() == ' ');
}

Json PercentilesJson(const LatencyWindow::Percentiles& percentiles) {
  return {{"p50", percentiles.p50_ms}, {"p90", percentiles.p90_ms}, {"p99", percentiles.p99_ms}};
}

Json ModelJson(const ModelFacts& model, int64_t created) {
  return {{"id", model.name}, {"object", "model"}, {"created", created}, {"owned_by", "photon"}};
}

// Puts headers that every answer has before those of an answer.
class AnswerWithHeaders final : public HttpAnswer {
 public:
  AnswerWithHeaders(std::shared_ptr<HttpAnswer> answer, HttpHeaders headers)
      : answer_(std::move(answer)), headers_(std::move(headers)) {}

  HttpPart Next() override {
    HttpPart part = answer_->Next();
    if (part.head.has_value()) {
      HttpHeaders& headers = part.head->headers;
      headers.insert(headers.begin(), headers_.begin(), headers_.end());
    }
    return part;
  }
  void OnClosed(bool complete) override { answer_->OnClosed(complete); }

 private:
  const std::shared_ptr<HttpAnswer> answer_;
  const HttpHeaders headers_;
};

// What goes wrong before there is a call.
std::shared_ptr<HttpAnswer> RefuseCompletion(const absl::Status& error, const RequestName& name) {
  LogRequest(name, error, std::nullopt);
  return AnswerAtOnce(ApiErrorResponse(error));
}

}  // namespace

HttpService::HttpService(Environment environment)
    : environment_(std::move(environment)),
      created_(std::chrono::duration_cast<std::chrono::seconds>(
                   std::chrono::system_clock::now().time_since_epoch())
                   .count()),
      started_(environment_.clock->Now()) {}

std::shared_ptr<HttpAnswer> HttpService::Handle(HttpRequest request, HttpWaker waker) const {
  const std::string request_id = RequestIdOr(request.header("x-request-id"));
  std::shared_ptr<HttpAnswer> answer = Dispatch(std::move(request), request_id, std::move(waker));
  return std::make_shared<AnswerWithHeaders>(
      std::move(answer), HttpHeaders{{"server", absl::StrCat("photon/", PHOTON_VERSION)},
                                     {"x-request-id", request_id},
                                     {"x-content-type-options", "nosniff"}});
}

std::shared_ptr<HttpAnswer> HttpService::Dispatch(HttpRequest request,
                                                  const std::string& request_id,
                                                  HttpWaker waker) const {
  const std::string& path = request.path;
  const bool is_model = path.size() > kModelsPrefix.size() && path.starts_with(kModelsPrefix);
  const PageFile* page = FindPageFile(path);
  const bool is_get_only = page != nullptr || is_model || path == "/v1/models" ||
                           path == "/v1/stats" || path == "/healthz" || path == "/readyz" ||
                           (path == "/metrics" && environment_.metrics != nullptr);
  const bool is_post_only = path == "/v1/completions" || path == "/v1/chat/completions";
  const bool is_get = request.method == "GET" || request.method == "HEAD";

  // Nothing under /v1 says anything to those who may not know.
  std::shared_ptr<const Caller> caller;
  if (path.starts_with("/v1/")) {
    std::optional<std::string_view> token;
    if (const auto value = request.header("authorization")) token = BearerToken(*value);
    absl::StatusOr<Caller> admitted = environment_.authenticator->Admit(token);
    if (!admitted.ok()) return AnswerAtOnce(ApiErrorResponse(admitted.status()));
    caller = std::make_shared<const Caller>(*std::move(admitted));
  }
  if (!is_get_only && !is_post_only) {
    return AnswerAtOnce(ApiErrorResponse(
        absl::NotFoundError(absl::StrCat("there is no ", path.substr(0, 256), " here"))));
  }
  if (is_get_only ? !is_get : request.method != "POST") {
    HttpResponse response =
        ApiErrorResponse(absl::InvalidArgumentError(absl::StrCat(
                             "this path takes ", is_get_only ? "GET" : "POST", " alone")),
                         405);
    response.head.headers.emplace_back("allow", is_get_only ? "GET, HEAD" : "POST");
    return AnswerAtOnce(std::move(response));
  }

  if (page != nullptr) return AnswerAtOnce(PageResponse(*page));
  if (path == "/healthz") return AnswerAtOnce(Alive());
  if (path == "/readyz") return AnswerAtOnce(Ready());
  if (path == "/metrics") {
    return AnswerAtOnce(TextResponse(environment_.metrics(), 200, "text/plain; version=0.0.4"));
  }
  if (path == "/v1/stats") return AnswerAtOnce(Stats());
  if (path == "/v1/models") return AnswerAtOnce(ListModels());
  if (is_model) return AnswerAtOnce(GetModel(path.substr(kModelsPrefix.size())));
  if (path == "/v1/chat/completions") {
    return AnswerAtOnce(ApiErrorResponse(absl::NotFoundError(
        "model: this is not a chat model: its checkpoint has no chat template. Use "
        "/v1/completions")));
  }
  return Complete(request, std::move(caller), request_id, std::move(waker));
}

std::shared_ptr<HttpAnswer> HttpService::Complete(const HttpRequest& http_request,
                                                  std::shared_ptr<const Caller> caller,
                                                  const std::string& request_id,
                                                  HttpWaker waker) const {
  RequestName name = {.method = "completions",
                      .id = request_id,
                      .trace = TraceContext::From(http_request.header("traceparent"))};
  // What a page of another origin cannot send without asking first.
  if (!IsJson(http_request.header("content-type").value_or(""))) {
    const auto error = absl::InvalidArgumentError("expected a content-type of application/json");
    LogRequest(name, error, std::nullopt);
    return AnswerAtOnce(ApiErrorResponse(error, 415));
  }
  const ModelLease model = environment_.calls.models->Enter();
  auto request =
      ParseCompletionRequest(http_request.body, model->facts().name, environment_.limits);
  if (!request.ok()) return RefuseCompletion(request.status(), name);
  auto queries = CompletionQueries(*request, model->facts(), environment_.limits, RandomBits());
  if (!queries.ok()) return RefuseCompletion(queries.status(), name);

  GenerationCall::Settings call_settings = {.caller = std::move(caller),
                                            .on_change = std::move(waker)};
  if (request->timeout.has_value()) {
    call_settings.deadline = environment_.clock->Now() + *request->timeout;
  }
  auto call = GenerationCall::Create(environment_.calls, model.model(), *std::move(queries),
                                     std::move(call_settings));
  CompletionCall::Settings settings = {.stream = request->stream,
                                       .max_response_bytes = environment_.max_response_bytes,
                                       .name = std::move(name)};
  settings.abortable = environment_.requests->Add(request_id, [weak = std::weak_ptr(call)] {
    const std::shared_ptr<GenerationCall> call = weak.lock();
    if (call != nullptr) call->Leave(absl::CancelledError("the request was aborted"));
  });
  CompletionResponse response(*std::move(request),
                              std::shared_ptr<const ModelFacts>(model.model(), &model->facts()),
                              absl::StrCat("cmpl-", RandomHex(12)));
  return std::make_shared<CompletionCall>(std::move(call), std::move(response),
                                          std::move(settings));
}

HttpResponse HttpService::ListModels() const {
  Json data = Json::array();
  data.push_back(ModelJson(environment_.calls.models->current()->facts(), created_));
  return JsonResponse({{"object", "list"}, {"data", std::move(data)}});
}

HttpResponse HttpService::GetModel(std::string_view id) const {
  const std::shared_ptr<ServedModel> model = environment_.calls.models->current();
  const ModelFacts& facts = model->facts();
  if (id == facts.name) return JsonResponse(ModelJson(facts, created_));
  return ApiErrorResponse(
      absl::NotFoundError(absl::StrCat("model: this server serves ", facts.name)));
}

HttpResponse HttpService::Alive() const {
  return environment_.alive() ? TextResponse("ok\n", 200) : TextResponse("stuck\n", 503);
}

HttpResponse HttpService::Ready() const {
  return environment_.ready() ? TextResponse("ready\n", 200) : TextResponse("not ready\n", 503);
}

HttpResponse HttpService::Stats() const {
  const std::shared_ptr<ServedModel> served = environment_.calls.models->current();
  const ModelFacts& model = served->facts();
  const SchedulerStats stats = environment_.stats();
  const TimePoint now = environment_.clock->Now();
  const auto milliseconds = [](Duration duration) {
    return std::chrono::duration<double, std::milli>(duration).count();
  };
  Json modes = Json::array();
  for (const GenerationMode mode : model.shape.modes) modes.push_back(ModeName(mode));
  Json json = {{"model",
                {{"name", model.name},
                 {"device", model.shape.device},
                 {"modes", std::move(modes)},
                 {"default_mode", ModeName(model.default_mode)},
                 {"max_context_tokens", MaxSequenceTokens(model.shape)},
                 {"meta_context_tokens", model.shape.meta_tokens}}},
               {"server",
                {{"version", PHOTON_VERSION},
                 {"ready", environment_.ready()},
                 {"uptime_ms", milliseconds(now - started_)}}},
               {"sequences",
                {{"running", stats.num_running},
                 {"paused", stats.num_paused},
                 {"waiting", stats.num_waiting},
                 {"max_rows", model.shape.max_rows}}},
               {"pages",
                {{"free", stats.pages_free},
                 {"in_use", stats.pages_in_use},
                 {"cached", stats.pages_cached},
                 {"pinned", stats.pages_pinned},
                 {"total", stats.num_pages},
                 {"tokens_each", model.shape.page_tokens},
                 {"bytes_each", model.shape.page_bytes}}},
               {"totals",
                {{"steps", stats.steps},
                 {"step_rows", stats.step_rows},
                 {"step_ms", milliseconds(stats.step_time)},
                 {"prompt_tokens", stats.prompt_tokens},
                 {"prompt_tokens_cached", stats.prompt_tokens_cached},
                 {"generated_tokens", stats.generated_tokens},
                 {"wasted_slots", stats.wasted_slots},
                 {"preemptions", stats.preemptions},
                 {"evictions", stats.evictions},
                 {"rejected", stats.rejected_queue_full + stats.rejected_deadline}}}};
  if (environment_.calls.latencies != nullptr) {
    const LatencyWindow::Summary summary = environment_.calls.latencies->Summarise(now);
    json["latency_ms"] = {{"sequences", summary.num_sequences},
                          {"time_to_first_token", PercentilesJson(summary.time_to_first_token)},
                          {"time_per_output_token", PercentilesJson(summary.time_per_output_token)},
                          {"duration", PercentilesJson(summary.duration)}};
  }
  return JsonResponse(json);
}

}  // namespace photon
