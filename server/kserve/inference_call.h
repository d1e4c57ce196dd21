// ModelInfer: one inference, answered when all of it has been generated.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "server/kserve/inference.h"

namespace photon {

// Lives until gRPC is done with the call.
class InferenceCall final : public grpc::ServerUnaryReactor {
 public:
  static grpc::ServerUnaryReactor* Start(grpc::CallbackServerContext* context,
                                         const Inference::Environment& environment,
                                         const grpc::ByteBuffer& request,
                                         grpc::ByteBuffer* response);

 private:
  InferenceCall(grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
      : context_(context), response_(response) {}

  void OnCancel() override;
  void OnDone() override;

  // Answers, if there is something to answer.
  void Advance();

  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  std::shared_ptr<InferenceCall> self_;   // until OnDone
  std::unique_ptr<Inference> inference_;  // constant until OnDone

  std::mutex mutex_;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace photon
