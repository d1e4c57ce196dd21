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
// For a new model's first answer, where no limit is set.
constexpr std::chrono::minutes kProbeTimeout{5};

void LogReport(const AccessControl::Report& report) {
  if (report.is_error) spdlog::error("{}; what was there before stays in force", report.text);
  if (!report.is_error) spdlog::info("{}", report.text);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const SchedulerOptions& scheduler_options,
                                                      LoadedModel loaded, ModelLoader loader,
                                                      const Clock* clock) {
  std::vector<std::string> problems = options.Validate();
  static const SteadyClock steady_clock;
  if (clock == nullptr) clock = &steady_clock;
  auto metrics = std::make_unique<ServingMetrics>(loaded.facts.name, PHOTON_VERSION,
                                                  ShapeOfAll(loaded.engines));
  const ServedModel::Environment environment = {.clock = clock,
                                                .metrics = metrics.get(),
                                                .scheduler = scheduler_options,
                                                .documents = options.documents};
  auto model = ServedModel::Create(std::move(loaded), environment);
  if (!model.ok()) problems.emplace_back(model.status().message());
  AccessOptions access_options = options.access;
  access_options.open_administration = options.IsLocal();
  auto access = AccessControl::Create(access_options, clock, LogReport);
  if (!access.ok()) problems.emplace_back(access.status().message());
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));

  ServerOptions capped = options;
  capped.requests.max_sequences =
      std::min(options.requests.max_sequences, scheduler_options.max_queue);
  std::unique_ptr<Server> server(new Server(capped, clock, std::move(metrics), *std::move(model),
                                            *std::move(access), std::move(loader), environment));
  if (absl::Status status = server->Listen(); !status.ok()) return status;
  return server;
}

Server::Server(const ServerOptions& options, const Clock* clock,
               std::unique_ptr<ServingMetrics> metrics, std::shared_ptr<ServedModel> model,
               std::unique_ptr<AccessControl> access, ModelLoader loader,
               const ServedModel::Environment& environment)
    : options_(options),
      clock_(clock),
      metrics_(std::move(metrics)),
      access_(std::move(access)),
      models_(std::move(model)),
      reloader_({.drain_timeout = options.drain_timeout,
                 .probe_timeout = options.supervisor.step_timeout.count() > 0
                                      ? options.supervisor.step_timeout
                                      : kProbeTimeout},
                &models_, std::move(loader), environment,
                [this](const ServedModel* ended, const absl::Status& status) {
                  OnModelEnd(ended, status);
                }),
      health_service_({v1::GenerationService::service_full_name(),
                       v1::DocumentService::service_full_name(),
                       v1::ModelService::service_full_name(), v1::AdminService::service_full_name(),
                       inference::GRPCInferenceService::service_full_name(),
                       grpc::health::v1::Health::service_full_name()}),
      generation_service_(Calls(), options.requests),
      document_service_(Calls(), clock_, options.requests, options.documents),
      model_service_(&models_),
      admin_service_(&requests_,
                     {.drain = [this] { Drain(); },
                      .reload =
                          [this](const std::string& directory, ModelReloader::Listener listener) {
                            return reloader_.Reload(directory, std::move(listener));
                          },
                      .stats = [this] { return Stats(); }}),
      inference_service_({.calls = Calls(),
                          .limits = options.requests,
                          .max_response_bytes = options.max_message_bytes,
                          .requests = &requests_},
                         {.alive = [this] { return !is_stuck(); },
                          .ready = [this] { return health_service_.serving(); },
                          .stats = [this] { return stats(); }}),
      http_service_({.calls = Calls(),
                     .clock = clock_,
                     .limits = options.requests,
                     .max_response_bytes = options.http.max_response_bytes,
                     .alive = [this] { return !is_stuck(); },
                     .ready = [this] { return health_service_.serving(); },
                     .stats = [this] { return stats(); },
                     .metrics = [this] { return MetricsText(); },
                     .authenticator = &access_->authenticator(),
                     .requests = &requests_}),
      supervisor_(options.supervisor, clock_,
                  {.models = [this] { return reloader_.models(); },
                   .set_healthy = [this](bool healthy) { SetHealthy(healthy); },
                   .on_stuck = [this](const absl::Status& why) { GiveUp(why); }}) {}

CallEnvironment Server::Calls() {
  return {.models = &models_,
          .latencies = &latencies_,
          .metrics = metrics_.get(),
          .notifier = &notifier_,
          .max_unread_bytes = options_.max_unread_bytes};
}

v1::GetStatsResponse Server::Stats() const {
  const SchedulerStats stats = this->stats();
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
  const std::shared_ptr<ServedModel> model = models_.current();
  const ModelReloader::Counts reloads = reloader_.counts();
  return metrics_->Text(stats(),
                        {.page_tokens = model->facts().shape.page_tokens,
                         .num_pages = model->facts().shape.num_pages,
                         .generation = model->generation(),
                         .reloads_done = reloads.done,
                         .reloads_failed = reloads.failed},
                        refusals);
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
  const std::shared_ptr<ServedModel> model = models_.current();
  model->Start(
      [this, model = model.get()](const absl::Status& status) { OnModelEnd(model, status); });
  supervisor_.Start();
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

void Server::SetHealthy(bool healthy) {
  std::lock_guard lock(mutex_);
  healthy_ = healthy;
  UpdateHealth();
}

void Server::UpdateHealth() {
  health_service_.SetServing(healthy_ && !draining_ && !outcome_.has_value());
  changed_.notify_all();
}

absl::Status Server::AwaitReady() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return healthy_ || draining_ || outcome_.has_value();
  });
  if (outcome_.has_value()) return *outcome_;
  return draining_ ? absl::UnavailableError("the server is draining") : absl::OkStatus();
}

void Server::OnModelEnd(const ServedModel* model, const absl::Status& status) {
  // Of one that has been replaced, nothing else was to be expected.
  if (status.ok() && model != models_.current().get()) return;
  std::lock_guard lock(mutex_);
  if (!outcome_.has_value()) outcome_ = status;
  UpdateHealth();
}

void Server::GiveUp(const absl::Status& why) {
  spdlog::critical("{}", std::string(why.message()));
  reloader_.Stop();
  const std::vector<std::shared_ptr<ServedModel>> models = reloader_.models();
  for (const auto& model : models) model->scheduler().Drain(TimePoint::min());
  {
    std::lock_guard lock(mutex_);
    is_stuck_ = true;
    if (!outcome_.has_value()) outcome_ = why;
    UpdateHealth();
  }
  for (const auto& model : models) {
    model->calls().EndAll(absl::UnavailableError("the engine is stuck"));
  }
}

bool Server::is_stuck() const {
  std::lock_guard lock(mutex_);
  return is_stuck_;
}

void Server::Drain() {
  std::lock_guard lock(mutex_);
  if (draining_) return;
  // Whoever hears that the server drains finds it draining.
  if (options_.drain_pause.count() == 0) Refuse();
  draining_ = true;
  // Whoever shares the sockets takes what comes from now on.
  grpc_->LeaveToOthers();
  if (http_server_ != nullptr) http_server_->LeaveToOthers();
  UpdateHealth();
  if (options_.drain_pause.count() == 0) return;
  pause_ = std::thread([this] {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, options_.drain_pause, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopped_ || outcome_.has_value();
      });
    }
    Refuse();
  });
}

void Server::Reload() {
  access_->Reload();
  reloader_.ReloadIfChanged();
}

void Server::Refuse() {
  reloader_.Stop();
  models_.current()->scheduler().Drain(clock_->Now() + options_.drain_timeout);
  grpc_->Drain();
  if (http_server_ != nullptr) http_server_->Drain();
}

absl::Status Server::Wait() {
  absl::Status outcome;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock,
                  [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return outcome_.has_value(); });
    outcome = *outcome_;
    if (is_stuck_) {
      // Calls have been told; what still waits for the step is left behind.
      if (!stopper_.joinable()) stopper_ = std::thread([this] { Stop(); });
      changed_.wait_for(lock, 2 * kFlushTimeout,
                        [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopped_; });
      return outcome;
    }
  }
  if (outcome.ok()) reloader_.AwaitRetirement();
  Stop();
  return outcome;
}

void Server::Stop() {
  if (grpc_ == nullptr) return;
  health_service_.EndWatches();
  grpc_->Stop(kFlushTimeout);
  if (http_server_ != nullptr) http_server_->Stop(kFlushTimeout);
  std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

Server::~Server() {
  reloader_.Stop();
  for (const auto& model : reloader_.models()) model->scheduler().Drain(TimePoint::min());
  models_.current()->Retire(TimePoint::min());
  reloader_.AwaitRetirement();
  supervisor_.Stop();
  if (stopper_.joinable()) stopper_.join();
  Stop();
  // Before whom it tells.
  notifier_.Stop();
  if (pause_.joinable()) pause_.join();
}

}  // namespace photon
