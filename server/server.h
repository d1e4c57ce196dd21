// The gRPC server around the engines of one model: services, limits, and the way down.
//
//   gRPC's threads:   parse, submit, write
//   the loop thread:  Scheduler::RunStep, again and again; it alone touches the engines
#pragma once

#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "scheduler/clock.h"
#include "scheduler/scheduler.h"
#include "server/admin_service.h"
#include "server/auth/access_control.h"
#include "server/auth/request_registry.h"
#include "server/document_service.h"
#include "server/generation_service.h"
#include "server/grpc_endpoint.h"
#include "server/health_service.h"
#include "server/http/http_server.h"
#include "server/http/http_service.h"
#include "server/kserve/inference_service.h"
#include "server/latency_window.h"
#include "server/metrics/measured_engine.h"
#include "server/metrics/serving_metrics.h"
#include "server/model_facts.h"
#include "server/model_service.h"
#include "server/options.h"

namespace photon {

class Server {
 public:
  // Listens and serves. The engines, at least one, and the tokenizer in `model` outlive the server;
  // `model.shape` is filled in here. kInvalidArgument: options that make no sense, every one named.
  // kUnavailable: the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const SchedulerOptions& scheduler_options,
                                                       ModelFacts model,
                                                       std::span<Engine* const> engines);
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const SchedulerOptions& scheduler_options,
                                                       ModelFacts model, Engine* engine) {
    return Start(options, scheduler_options, std::move(model), std::span(&engine, 1));
  }

  // Ends what still runs at once.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Where clients connect, the port that was taken included.
  const std::string& address() const { return grpc_->address(); }
  // Of the port for health alone; empty without one.
  std::string health_address() const { return grpc_->health_address(); }

  // Of the HTTP port; empty without one.
  std::string http_address() const {
    return http_server_ == nullptr ? "" : http_server_->address();
  }

  // Has the files of keys and certificates read again soon. Any thread.
  void Reload() { access_->Reload(); }

  // Turns health to NOT_SERVING and refuses new requests; accepted ones have drain_timeout to end,
  // then end with what they have. Any thread.
  void Drain();

  // Blocks until the server has drained or an engine failed, then stops it. The engine's error.
  absl::Status Wait();

  SchedulerStats stats() const { return scheduler_->stats(); }

 private:
  // `options` with limits that the scheduler's queue allows.
  Server(const ServerOptions& options, ModelFacts model, std::unique_ptr<SteadyClock> clock,
         std::unique_ptr<ServingMetrics> metrics,
         std::vector<std::unique_ptr<MeasuredEngine>> engines, std::unique_ptr<Scheduler> scheduler,
         std::unique_ptr<AccessControl> access);

  CallEnvironment Calls();

  v1::GetStatsResponse Stats() const;
  // In Prometheus's text format.
  std::string MetricsText() const;

  absl::Status Listen();
  absl::Status ListenForHttp();
  void RunSteps();
  void Stop();

  const ServerOptions options_;
  const ModelFacts model_;
  const std::unique_ptr<SteadyClock> clock_;
  const std::unique_ptr<ServingMetrics> metrics_;
  const std::vector<std::unique_ptr<MeasuredEngine>> engines_;
  const std::unique_ptr<Scheduler> scheduler_;
  const std::unique_ptr<AccessControl> access_;
  RequestRegistry requests_;
  LatencyWindow latencies_;
  HealthService health_service_;
  GenerationService generation_service_;
  DocumentService document_service_;
  ModelService model_service_;
  AdminService admin_service_;
  InferenceService inference_service_;
  HttpService http_service_;
  std::unique_ptr<GrpcEndpoint> grpc_;
  std::unique_ptr<HttpServer> http_server_;  // null: no HTTP port
  std::thread loop_;
  absl::Status loop_status_;  // of the loop thread, read after it is joined
};

}  // namespace photon
