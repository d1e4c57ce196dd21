#include "server/kserve/inference_call.h"

#include <utility>

#include "inference/grpc_predict_v2.grpc.pb.h"
#include "server/auth/call_guard.h"
#include "server/byte_buffer_codec.h"
#include "server/call_stream.h"
#include "server/request_id.h"
#include "server/unary_call.h"

namespace photon {

grpc::ServerUnaryReactor* InferenceCall::Start(grpc::CallbackServerContext* context,
                                               const Inference::Environment& environment,
                                               const grpc::ByteBuffer& request_buffer,
                                               grpc::ByteBuffer* response) {
  Inference::Settings settings = {
      .name =
          NameCall(context, inference::GRPCInferenceService::service_full_name(), "ModelInfer")};
  inference::ModelInferRequest request;
  if (absl::Status status = ParseMessage(request_buffer, &request); !status.ok()) {
    LogRequest(settings.name, status, std::nullopt);
    return FinishUnary(context, status);
  }
  auto* call = new InferenceCall(context, response);
  call->self_.reset(call);
  settings.deadline = DeadlineOf(*context);
  settings.caller = CallOf(*context).caller();
  settings.on_change = [weak = std::weak_ptr<InferenceCall>(call->self_)] {
    if (const std::shared_ptr<InferenceCall> self = weak.lock()) self->Advance();
  };
  auto inference = Inference::Create(environment, request, std::move(settings));
  if (!inference.ok()) {
    ReturnRequestId(context, Answer::kErrorAlone);
    call->Finish(ToGrpcStatus(inference.status()));
    return call;
  }
  call->inference_ = *std::move(inference);
  call->inference_->Submit();
  return call;
}

void InferenceCall::Advance() {
  grpc::Status status;
  {
    std::lock_guard lock(mutex_);
    if (finished_) return;
    const Inference::Reading reading = inference_->Next();
    if (!reading.end.has_value()) return;
    finished_ = true;
    ReturnRequestId(context_, reading.end->ok() ? Answer::kResponse : Answer::kErrorAlone);
    AddRetryPushback(*context_, *reading.end);
    status = ToGrpcStatus(*reading.end);
    if (reading.response.has_value()) *response_ = SerializeMessage(*reading.response);
  }
  // gRPC may call back from inside.
  Finish(status);
}

void InferenceCall::OnCancel() {
  if (inference_ != nullptr) inference_->Leave(WhyTheClientLeft(*context_));
}

void InferenceCall::OnDone() {
  inference_.reset();
  // May destroy this object.
  std::shared_ptr<InferenceCall>(std::move(self_)).reset();
}

}  // namespace photon
