// ModelStreamInfer: many inferences at a time on one stream, each with responses of its own.
//
// An inference that goes wrong has a response that says so, and the stream goes on. It ends when
// the client has no more requests and all are answered.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "server/kserve/inference.h"

namespace photon {

// Lives until gRPC is done with the call.
class InferenceStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  static InferenceStream* Start(grpc::CallbackServerContext* context,
                                const Inference::Environment& environment);

 private:
  using Inferences = std::list<std::shared_ptr<Inference>>;

  InferenceStream(grpc::CallbackServerContext* context, const Inference::Environment& environment);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // Starts the inference that has just been read, or queues its error.
  void TakeRequest();
  absl::StatusOr<std::shared_ptr<const Caller>> NextCaller();
  void QueueError(const absl::Status& error, inference::ModelInferResponse frame)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Starts what can be started of: the next read, the next write, the end.
  void Advance();
  // Moves the next response of an inference, if there is one, to `write_buffer_`; inferences that
  // have ended to `ended`.
  bool TakeResponse(Inferences& ended) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LeaveAll(const absl::Status& why);

  grpc::CallbackServerContext* const context_;
  const Inference::Environment& environment_;
  const RequestName call_name_;            // with the id of the call
  std::shared_ptr<InferenceStream> self_;  // until OnDone
  grpc::ByteBuffer read_buffer_;           // of the read in flight
  grpc::ByteBuffer write_buffer_;          // of the write in flight

  std::mutex mutex_;
  std::shared_ptr<const Caller> first_caller_ ABSL_GUARDED_BY(mutex_);  // of the first request
  Inferences inferences_ ABSL_GUARDED_BY(mutex_);  // the one whose turn is next comes first
  std::list<inference::ModelStreamInferResponse> errors_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<Inference> written_ ABSL_GUARDED_BY(mutex_);  // of the write in flight
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool half_closed_ ABSL_GUARDED_BY(mutex_) = false;          // the client has no more requests
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;            // Finish was called: nothing else is
  std::optional<absl::Status> left_ ABSL_GUARDED_BY(mutex_);  // why there is nobody to write to
};

}  // namespace photon
