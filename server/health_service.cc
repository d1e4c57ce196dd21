#include "server/health_service.h"

#include <grpcpp/support/server_callback.h>

#include <optional>

namespace photon {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using ServingStatus = HealthCheckResponse::ServingStatus;

// One Watch call. Sends the newest status it was told, skipping those that changed again before the
// write ahead of them was done.
class HealthService::Watcher : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  Watcher(HealthService* service, std::string name) : service_(service), name_(std::move(name)) {}

  const std::string& name() const { return name_; }

  void Tell(ServingStatus status) {
    std::unique_lock lock(mutex_);
    newest_ = status;
    Advance(std::move(lock));
  }

  void End(grpc::StatusCode code) {
    std::unique_lock lock(mutex_);
    if (!end_.has_value()) end_ = code;
    Advance(std::move(lock));
  }

 private:
  void Advance(std::unique_lock<std::mutex> lock) {
    if (writing_ || finishing_) return;
    if (end_.has_value()) {
      finishing_ = true;
      lock.unlock();
      Finish(grpc::Status(*end_, "the watch ended"));
    } else if (newest_ != sent_) {
      sent_ = newest_;
      response_.set_status(*newest_);
      writing_ = true;
      lock.unlock();
      StartWrite(&response_);
    }
  }

  void OnWriteDone(bool ok) override {
    std::unique_lock lock(mutex_);
    writing_ = false;
    if (!ok && !end_.has_value()) end_ = grpc::StatusCode::CANCELLED;
    Advance(std::move(lock));
  }

  void OnCancel() override { End(grpc::StatusCode::CANCELLED); }

  void OnDone() override {
    std::shared_ptr<Watcher> self;  // released after the lock
    std::lock_guard lock(service_->mutex_);
    for (auto it = service_->watchers_.begin(); it != service_->watchers_.end(); ++it) {
      if (it->get() != this) continue;
      self = *it;
      service_->watchers_.erase(it);
      return;
    }
  }

  HealthService* const service_;
  const std::string name_;
  HealthCheckResponse response_;  // of the write in flight

  std::mutex mutex_;
  std::optional<ServingStatus> newest_ ABSL_GUARDED_BY(mutex_);
  std::optional<ServingStatus> sent_ ABSL_GUARDED_BY(mutex_);
  std::optional<grpc::StatusCode> end_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
};

HealthService::HealthService(const std::vector<std::string>& services) {
  statuses_[""] = HealthCheckResponse::NOT_SERVING;
  for (const std::string& service : services) statuses_[service] = HealthCheckResponse::NOT_SERVING;
}

HealthService::~HealthService() = default;

void HealthService::SetServing(bool serving) {
  const auto status = serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
  std::lock_guard lock(mutex_);
  for (auto& [name, current] : statuses_) current = status;
  for (const auto& watcher : watchers_) {
    if (statuses_.contains(watcher->name())) watcher->Tell(status);
  }
}

bool HealthService::serving() const {
  std::lock_guard lock(mutex_);
  return statuses_.at("") == HealthCheckResponse::SERVING;
}

void HealthService::EndWatches() {
  std::set<std::shared_ptr<Watcher>> watchers;
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) watcher->End(grpc::StatusCode::UNAVAILABLE);
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  std::unique_lock lock(mutex_);
  const auto found = statuses_.find(request->service());
  if (found == statuses_.end()) {
    lock.unlock();
    reactor->Finish(grpc::Status(grpc::StatusCode::NOT_FOUND, "service: the server has no such"));
    return reactor;
  }
  response->set_status(found->second);
  lock.unlock();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(
    grpc::CallbackServerContext*, const HealthCheckRequest* request) {
  auto watcher = std::make_shared<Watcher>(this, request->service());
  std::lock_guard lock(mutex_);
  watchers_.insert(watcher);
  const auto found = statuses_.find(request->service());
  watcher->Tell(found == statuses_.end() ? HealthCheckResponse::SERVICE_UNKNOWN : found->second);
  if (ended_) watcher->End(grpc::StatusCode::UNAVAILABLE);
  return watcher.get();
}

}  // namespace photon
