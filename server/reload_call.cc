#include "server/reload_call.h"

#include <utility>

#include "server/grpc_status.h"

namespace photon {
namespace {

v1::ReloadStage ToProto(ModelReloader::Stage stage) {
  switch (stage) {
    case ModelReloader::Stage::kLoading:
      return v1::RELOAD_STAGE_LOADING;
    case ModelReloader::Stage::kProbing:
      return v1::RELOAD_STAGE_PROBING;
    case ModelReloader::Stage::kDraining:
      return v1::RELOAD_STAGE_DRAINING;
    case ModelReloader::Stage::kDone:
      return v1::RELOAD_STAGE_DONE;
  }
  return v1::RELOAD_STAGE_UNSPECIFIED;
}

}  // namespace

ReloadCall* ReloadCall::Start(const std::string& directory, const Reload& reload) {
  auto* call = new ReloadCall;
  std::shared_ptr<ReloadCall> self(call);
  {
    std::lock_guard lock(call->mutex_);
    call->self_ = self;
  }
  const absl::Status begun =
      reload(directory, {.on_progress = [self](const auto& progress) { self->Add(progress); },
                         .on_end = [self](const absl::Status& status) { self->End(status); }});
  if (!begun.ok()) self->End(begun);
  return call;
}

void ReloadCall::Add(const ModelReloader::Progress& progress) {
  v1::ReloadModelResponse response;
  response.set_stage(ToProto(progress.stage));
  response.set_num_running(progress.num_running);
  response.set_num_documents_ended(progress.num_documents_ended);
  response.set_model_generation(progress.generation);
  std::unique_lock lock(mutex_);
  if (end_.has_value()) return;
  unwritten_.push_back(std::move(response));
  Advance(std::move(lock));
}

void ReloadCall::End(const absl::Status& status) {
  std::unique_lock lock(mutex_);
  if (end_.has_value()) return;
  end_ = status;
  Advance(std::move(lock));
}

void ReloadCall::Advance(std::unique_lock<std::mutex> lock) {
  if (writing_ || finishing_) return;
  if (!unwritten_.empty()) {
    written_ = std::move(unwritten_.front());
    unwritten_.pop_front();
    writing_ = true;
    lock.unlock();
    StartWrite(&written_);
  } else if (end_.has_value()) {
    finishing_ = true;
    const grpc::Status status = ToGrpcStatus(*end_);
    lock.unlock();
    Finish(status);
  }
}

void ReloadCall::OnWriteDone(bool ok) {
  std::unique_lock lock(mutex_);
  writing_ = false;
  if (!ok) unwritten_.clear();
  if (!ok && !end_.has_value()) end_ = absl::CancelledError("the client left");
  Advance(std::move(lock));
}

void ReloadCall::OnCancel() {
  End(absl::CancelledError("the client left"));
}

void ReloadCall::OnDone() {
  std::shared_ptr<ReloadCall> self;  // released after the lock
  std::lock_guard lock(mutex_);
  self.swap(self_);
}

}  // namespace photon
