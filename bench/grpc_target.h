// A photon server, over gRPC: many calls at a time on a few connections.
#pragma once

#include <grpcpp/channel.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "bench/serving_target.h"
#include "photon/v1/document.grpc.pb.h"
#include "photon/v1/generation.grpc.pb.h"

namespace photon {

class GrpcTarget final : public ServingTarget {
 public:
  // Waits until the server at `address` answers. Calls take turns on `connections`, at least one.
  // `stats` is of its scheduler, and empty where that is in another process. An error is the
  // server's.
  static absl::StatusOr<std::unique_ptr<GrpcTarget>> Connect(const std::string& address,
                                                             int connections,
                                                             std::function<SchedulerStats()> stats);
  // Ends what runs.
  ~GrpcTarget() override;

  const ServingFacts& facts() const override { return facts_; }
  CallId Start(ServingCall call, OnDone on_done) override;
  void Cancel(CallId call) override;
  absl::StatusOr<std::string> CreateDocument(const std::vector<TokenId>& tokens) override;
  absl::Status DeleteDocument(const std::string& document) override;
  std::optional<SchedulerStats> stats() const override {
    return stats_ ? std::optional(stats_()) : std::nullopt;
  }

 private:
  template <typename Response>
  class Reader;

  GrpcTarget(ServingFacts facts, const std::vector<std::shared_ptr<grpc::Channel>>& channels,
             std::function<SchedulerStats()> stats);

  template <typename Request, typename Response>
  CallId StartReading(const Request& request, const ServingCall& call, OnDone on_done,
                      const std::function<void(grpc::ClientContext*, const Request*,
                                               grpc::ClientReadReactor<Response>*)>& start);
  void Forget(CallId call);

  const ServingFacts facts_;
  std::vector<std::unique_ptr<v1::GenerationService::Stub>> generation_;  // one a connection
  std::atomic<size_t> next_stub_ = 0;
  const std::unique_ptr<v1::DocumentService::Stub> documents_;
  const std::function<SchedulerStats()> stats_;

  std::mutex mutex_;
  std::condition_variable all_done_;
  int64_t next_call_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<CallId, grpc::ClientContext*> in_flight_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace photon
