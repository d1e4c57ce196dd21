// The gRPC server around the engines of one model: services, limits, and the way down.
//
//   gRPC's threads:   parse, submit, write
//   the loop thread:  Scheduler::RunStep, again and again; see ServedModel
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
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
#include "server/loaded_model.h"
#include "server/metrics/serving_metrics.h"
#include "server/model_reloader.h"
#include "server/model_service.h"
#include "server/options.h"
#include "server/served_model.h"
#include "server/supervisor.h"

namespace photon {

class Server {
 public:
  // Listens and takes requests; health says so once the engine has proved itself, see AwaitReady.
  // `loader` brings the models that replace this one; null: none does.
  // `clock`, of the scheduler and of those who watch it, outlives the server; null: a steady clock.
  // kInvalidArgument: options that make no sense, every one named. kUnavailable: the address cannot
  // be bound.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const SchedulerOptions& scheduler_options,
                                                       LoadedModel model,
                                                       ModelLoader loader = nullptr,
                                                       const Clock* clock = nullptr);

  // Ends what still runs at once, and waits for the step under way: see is_stuck.
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

  // Has the files of keys and certificates read again soon, and those of the model if they have
  // changed. Any thread.
  void Reload();

  // Blocks until the engine has answered a probe, and health is SERVING. What ended the server
  // instead, if anything did.
  absl::Status AwaitReady();

  // Turns health to NOT_SERVING, and refuses new requests after drain_pause; accepted ones have
  // drain_timeout to end after that, then end with what they have. Does nothing the second time.
  // Any thread.
  void Drain();

  // Blocks until the server has drained, its engine failed, or got stuck; then ends all calls and
  // stops listening. The engine's error.
  absl::Status Wait();

  // A step never ended: the server is lost. Any thread.
  bool is_stuck() const;

  // After Wait: the destructor would wait for a step or a load that nobody waits for any more. The
  // process has to end without.
  bool must_be_left_behind() const { return is_stuck() || reloader_.is_busy(); }

  // Of all models that it has served, together.
  SchedulerStats stats() const { return reloader_.stats(); }

 private:
  // `options` with limits that the scheduler's queue allows.
  Server(const ServerOptions& options, const Clock* clock, std::unique_ptr<ServingMetrics> metrics,
         std::shared_ptr<ServedModel> model, std::unique_ptr<AccessControl> access,
         ModelLoader loader, const ServedModel::Environment& environment);

  CallEnvironment Calls();

  v1::GetStatsResponse Stats() const;
  // In Prometheus's text format.
  std::string MetricsText() const;

  absl::Status Listen();
  absl::Status ListenForHttp();
  void Refuse();
  // How the loop of a model ended: of the one that is served because nothing runs any more, of any
  // because its engine has failed.
  void OnModelEnd(const ServedModel* model, const absl::Status& status);
  // A step does not end: nobody waits for it any longer.
  void GiveUp(const absl::Status& why);
  void SetHealthy(bool healthy);
  void UpdateHealth() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Stop();

  const ServerOptions options_;
  const Clock* const clock_;
  const std::unique_ptr<ServingMetrics> metrics_;
  const std::unique_ptr<AccessControl> access_;
  ModelHost models_;
  ModelReloader reloader_;
  RequestRegistry requests_;
  LatencyWindow latencies_;
  CallNotifier notifier_{CallNotifier::DefaultThreads()};
  HealthService health_service_;
  GenerationService generation_service_;
  DocumentService document_service_;
  ModelService model_service_;
  AdminService admin_service_;
  InferenceService inference_service_;
  HttpService http_service_;
  std::unique_ptr<GrpcEndpoint> grpc_;
  std::unique_ptr<HttpServer> http_server_;  // null: no HTTP port

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool healthy_ ABSL_GUARDED_BY(mutex_) = false;   // the supervisor's word
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;  // Drain was called
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_stuck_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> outcome_ ABSL_GUARDED_BY(mutex_);  // once nothing runs any more

  // The last members: they use the others.
  Supervisor supervisor_;
  std::thread pause_;    // of a drain
  std::thread stopper_;  // while a step is stuck
};

}  // namespace photon
