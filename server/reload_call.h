// AdminService.ReloadModel: tells a client of each stage of a reload.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "photon/v1/admin.pb.h"
#include "server/model_reloader.h"

namespace photon {

// Lives until gRPC is done with the call and the reloader with the reload, which goes on should the
// client leave.
class ReloadCall final : public grpc::ServerWriteReactor<v1::ReloadModelResponse> {
 public:
  using Reload = std::function<absl::Status(const std::string&, ModelReloader::Listener)>;

  static ReloadCall* Start(const std::string& directory, const Reload& reload);

 private:
  void Add(const ModelReloader::Progress& progress);
  void End(const absl::Status& status);
  void Advance(std::unique_lock<std::mutex> lock);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  std::mutex mutex_;
  std::shared_ptr<ReloadCall> self_ ABSL_GUARDED_BY(mutex_);  // until OnDone
  std::deque<v1::ReloadModelResponse> unwritten_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  v1::ReloadModelResponse written_;  // of the write in flight
};

}  // namespace photon
