#include "server/server.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/generation_request.h"

namespace photon {
namespace {

// For the last messages of streams to reach their clients.
constexpr std::chrono::seconds kFlushTimeout{2};

void LogReport(const AccessControl::Report& report) {
  if (report.is_error) spdlog::error("{}; what was there before stays in force", report.text);
  if (!report.is_error) spdlog::info("{}", report.text);
}

// The shape of a server: of one of its engines, with the pages and rows of all.
EngineShape ShapeOfAll(std::span<Engine* const> engines) {
  EngineShape shape = engines.front()->shape();
  for (const Engine* engine : engines.subspan(1)) {
    shape.num_pages += engine->shape().num_pages;
    shape.max_rows += engine->shape().max_rows;
    shape.device += ", " + engine->shape().device;
  }
  return shape;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const SchedulerOptions& scheduler_options,
                                                      ModelFacts model,
                                                      std::span<Engine* const> engines) {
  model.shape = ShapeOfAll(engines);
  std::vector<std::string> problems = options.Validate();
  const std::vector<GenerationMode>& modes = model.shape.modes;
  if (std::find(modes.begin(), modes.end(), model.default_mode) == modes.end()) {
    problems.push_back(absl::StrCat("default_mode: this model does not allow ",
                                    v1::GenerationMode_Name(ToProto(model.default_mode))));
  }
  if (model.default_max_tokens < 1) {
    problems.push_back(
        absl::StrCat("default_max_tokens: expected 1 or more, got ", model.default_max_tokens));
  }
  auto clock = std::make_unique<SteadyClock>();
  auto metrics = std::make_unique<ServingMetrics>(model.name, PHOTON_VERSION, model.shape);
  std::vector<std::unique_ptr<MeasuredEngine>> measured;
  std::vector<Engine*> stepped;
  for (Engine* engine : engines) {
    measured.push_back(std::make_unique<MeasuredEngine>(engine, clock.get(), metrics.get()));
    stepped.push_back(measured.back().get());
  }
  auto scheduler = Scheduler::Create(stepped, clock.get(), scheduler_options);
  if (!scheduler.ok()) problems.emplace_back(scheduler.status().message());
  AccessOptions access_options = options.access;
  access_options.open_administration = options.IsLocal();
  auto access = AccessControl::Create(access_options, clock.get(), LogReport);
  if (!access.ok()) problems.emplace_back(access.status().message());
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));

  ServerOptions capped = options;
  capped.requests.max_sequences =
      std::min(options.requests.max_sequences, scheduler_options.max_queue);
  std::unique_ptr<Server> server(new Server(capped, std::move(model), std::move(clock),
                                            std::move(metrics), std::move(measured),
                                            *std::move(scheduler), *std::move(access)));
  if (absl::Status status = server->Listen(); !status.ok()) return status;
  return server;
}

Server::Server(const ServerOptions& options, ModelFacts model, std::unique_ptr<SteadyClock> clock,
               std::unique_ptr<ServingMetrics> metrics,
               std::vector<std::unique_ptr<MeasuredEngine>> engines,
               std::unique_ptr<Scheduler> scheduler, std::unique_ptr<AccessControl> access)
    : options_(options),
      model_(std::move(model)),
      clock_(std::move(clock)),
      metrics_(std::move(metrics)),
      engines_(std::move(engines)),
      scheduler_(std::move(scheduler)),
      access_(std::move(access)),
      health_service_({v1::GenerationService::service_full_name(),
                       v1::DocumentService::service_full_name(),
                       v1::ModelService::service_full_name(), v1::AdminService::service_full_name(),
                       inference::GRPCInferenceService::service_full_name(),
                       grpc::health::v1::Health::service_full_name()}),
      generation_service_(&model_, Calls(), options.requests),
      document_service_(&model_, Calls(), clock_.get(), options.requests, options.documents),
      model_service_(&model_, scheduler_.get()),
      admin_service_(&requests_,
                     {.drain = [this] { Drain(); }, .stats = [this] { return Stats(); }}),
      inference_service_({.model = &model_,
                          .calls = Calls(),
                          .limits = options.requests,
                          .max_response_bytes = options.max_message_bytes,
                          .requests = &requests_},
                         [this] { return health_service_.serving(); }),
      http_service_({.model = &model_,
                     .calls = Calls(),
                     .clock = clock_.get(),
                     .limits = options.requests,
                     .max_response_bytes = options.http.max_response_bytes,
                     .ready = [this] { return health_service_.serving(); },
                     .metrics = [this] { return MetricsText(); },
                     .authenticator = &access_->authenticator(),
                     .requests = &requests_}) {}

CallEnvironment Server::Calls() {
  return {.scheduler = scheduler_.get(),
          .tokenizer = model_.tokenizer,
          .latencies = &latencies_,
          .metrics = metrics_.get(),
          .max_unread_bytes = options_.max_unread_bytes};
}

v1::GetStatsResponse Server::Stats() const {
  const SchedulerStats stats = scheduler_->stats();
  v1::GetStatsResponse response;
  response.set_num_running(stats.num_running);
  response.set_num_paused(stats.num_paused);
  response.set_num_waiting(stats.num_waiting);
  v1::PageStats& pages = *response.mutable_pages();
  pages.set_total(stats.num_pages);
  pages.set_free(stats.pages_free);
  pages.set_in_use(stats.pages_in_use);
  pages.set_cached(stats.pages_cached);
  pages.set_pinned(stats.pages_pinned);
  response.set_num_documents_pinned(stats.num_pins);
  response.set_num_connections(grpc_->num_connections());
  response.set_num_steps(stats.steps);
  response.set_num_prompt_tokens(stats.prompt_tokens);
  response.set_num_prompt_tokens_cached(stats.prompt_tokens_cached);
  response.set_num_generated_tokens(stats.generated_tokens);
  response.set_num_preemptions(stats.preemptions);
  auto& refused = *response.mutable_num_requests_refused();
  refused["queue_full"] = stats.rejected_queue_full;
  refused["deadline"] = stats.rejected_deadline;
  const auto refused_by_key = access_->authenticator().num_refused();
  for (int i = 0; i < kNumRefusals; ++i) {
    refused[std::string(RefusalName(static_cast<Refusal>(i)))] = refused_by_key[i];
  }
  response.set_num_connections_refused(grpc_->num_connections_refused());
  return response;
}

std::string Server::MetricsText() const {
  std::vector<ServingMetrics::Refusals> refusals;
  const auto refused_by_key = access_->authenticator().num_refused();
  for (int i = 0; i < kNumRefusals; ++i) {
    refusals.push_back({RefusalName(static_cast<Refusal>(i)), refused_by_key[i]});
  }
  return metrics_->Text(scheduler_->stats(), refusals);
}

absl::Status Server::Listen() {
  std::vector<GrpcEndpoint::Service> services = {
      {&generation_service_, v1::GenerationService::service_full_name()},
      {&document_service_, v1::DocumentService::service_full_name()},
      {&model_service_, v1::ModelService::service_full_name()},
      {&inference_service_, inference::GRPCInferenceService::service_full_name()},
  };
  // Where anybody could, nobody may.
  if (access_->authenticator().needs_key() || options_.IsLocal()) {
    services.push_back({&admin_service_, v1::AdminService::service_full_name(), Access::kAdmins});
  }
  auto grpc = GrpcEndpoint::Start(options_, services, &health_service_, access_.get(), &requests_);
  if (!grpc.ok()) return grpc.status();
  grpc_ = *std::move(grpc);
  if (absl::Status status = ListenForHttp(); !status.ok()) return status;
  loop_ = std::thread([this] { RunSteps(); });
  health_service_.SetServing(true);
  grpc_->Open();
  return absl::OkStatus();
}

absl::Status Server::ListenForHttp() {
  if (options_.http.listen.empty()) return absl::OkStatus();
  TlsContextProvider tls;
  if (access_->tls() != nullptr) tls = [this] { return access_->tls()->context(); };
  auto server = HttpServer::Start(
      options_.http,
      [this](HttpRequest request, HttpWaker waker) {
        return http_service_.Handle(std::move(request), std::move(waker));
      },
      std::move(tls));
  if (!server.ok()) return server.status();
  http_server_ = *std::move(server);
  return absl::OkStatus();
}

void Server::RunSteps() {
  while (scheduler_->WaitForWork()) {
    loop_status_ = scheduler_->RunStep();
    if (loop_status_.ok()) continue;
    spdlog::critical("the engine failed: {}", loop_status_.ToString());
    break;
  }
  health_service_.SetServing(false);
}

void Server::Drain() {
  // Whoever hears that the server drains finds it draining.
  scheduler_->Drain(clock_->Now() + options_.drain_timeout);
  if (http_server_ != nullptr) http_server_->Drain();
  health_service_.SetServing(false);
}

absl::Status Server::Wait() {
  if (loop_.joinable()) loop_.join();
  Stop();
  return loop_status_;
}

void Server::Stop() {
  if (grpc_ == nullptr) return;
  health_service_.EndWatches();
  grpc_->Stop(kFlushTimeout);
  if (http_server_ != nullptr) http_server_->Stop(kFlushTimeout);
}

Server::~Server() {
  scheduler_->Drain(TimePoint::min());
  if (loop_.joinable()) loop_.join();
  Stop();
}

}  // namespace photon
