// The standard gRPC health service: one status for the server ("") and for each of its services.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace photon {

class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  // Knows "" and `services`, all NOT_SERVING at first.
  explicit HealthService(const std::vector<std::string>& services);
  ~HealthService() override;

  // Sets every status and tells those who watch. Any thread.
  void SetServing(bool serving);

  // What Check says of the server as a whole. Any thread.
  bool serving() const;

  // Ends the Watch streams, present and future, with UNAVAILABLE: they would outlive the server.
  void EndWatches();

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  class Watcher;

  mutable std::mutex mutex_;
  std::map<std::string, grpc::health::v1::HealthCheckResponse::ServingStatus> statuses_
      ABSL_GUARDED_BY(mutex_);
  std::set<std::shared_ptr<Watcher>> watchers_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace photon
