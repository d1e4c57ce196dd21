#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
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

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const SchedulerOptions& scheduler_options,
                                                      ModelFacts model, Engine* engine) {
  model.shape = engine->shape();
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
  auto scheduler = Scheduler::Create(engine, clock.get(), scheduler_options);
  if (!scheduler.ok()) problems.emplace_back(scheduler.status().message());
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));

  ServerOptions capped = options;
  capped.requests.max_sequences =
      std::min(options.requests.max_sequences, scheduler_options.max_queue);
  std::unique_ptr<Server> server(
      new Server(capped, std::move(model), std::move(clock), *std::move(scheduler)));
  if (absl::Status status = server->Listen(); !status.ok()) return status;
  return server;
}

Server::Server(const ServerOptions& options, ModelFacts model, std::unique_ptr<SteadyClock> clock,
               std::unique_ptr<Scheduler> scheduler)
    : options_(options),
      model_(std::move(model)),
      clock_(std::move(clock)),
      scheduler_(std::move(scheduler)),
      health_service_(
          {v1::GenerationService::service_full_name(), v1::DocumentService::service_full_name(),
           v1::ModelService::service_full_name(), grpc::health::v1::Health::service_full_name()}),
      generation_service_(&model_, Calls(), options.requests),
      document_service_(&model_, Calls(), clock_.get(), options.requests, options.documents),
      model_service_(&model_, scheduler_.get()) {}

CallEnvironment Server::Calls() const {
  return {.scheduler = scheduler_.get(),
          .tokenizer = model_.tokenizer,
          .max_unread_bytes = options_.max_unread_bytes};
}

absl::Status Server::Listen() {
  const auto milliseconds = [](std::chrono::milliseconds value) {
    return static_cast<int>(value.count());
  };
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port);
  // A second server on the same port is an error, not a partner.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(options_.max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options_.max_streams_per_connection);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, milliseconds(options_.keepalive_interval));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                             milliseconds(options_.keepalive_timeout));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             milliseconds(options_.min_client_ping_interval));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.RegisterService(&generation_service_);
  builder.RegisterService(&document_service_);
  builder.RegisterService(&model_service_);
  builder.RegisterService(&health_service_);
  grpc_server_ = builder.BuildAndStart();
  if (grpc_server_ == nullptr) {
    return absl::UnavailableError(absl::StrCat("listen: cannot bind ", options_.listen));
  }
  const bool is_ip = options_.listen.find("unix") != 0;
  address_ = is_ip ? absl::StrCat(options_.listen.substr(0, options_.listen.rfind(':')), ":", port)
                   : options_.listen;
  loop_ = std::thread([this] { RunSteps(); });
  health_service_.SetServing(true);
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
  health_service_.SetServing(false);
  scheduler_->Drain(clock_->Now() + options_.drain_timeout);
}

absl::Status Server::Wait() {
  if (loop_.joinable()) loop_.join();
  Stop();
  return loop_status_;
}

void Server::Stop() {
  if (grpc_server_ == nullptr) return;
  health_service_.EndWatches();
  grpc_server_->Shutdown(std::chrono::system_clock::now() + kFlushTimeout);
  grpc_server_->Wait();
}

Server::~Server() {
  scheduler_->Drain(TimePoint::min());
  if (loop_.joinable()) loop_.join();
  Stop();
}

}  // namespace photon
