// Unary methods whose requests carry text: they read and write bytes, see byte_buffer_codec.h.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/byte_buffer_codec.h"
#include "server/grpc_status.h"
#include "server/request_id.h"

namespace photon {

inline grpc::ServerUnaryReactor* FinishUnary(grpc::CallbackServerContext* context,
                                             const absl::Status& status) {
  ReturnRequestId(context, status.ok() ? Answer::kResponse : Answer::kErrorAlone);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

// Answers a call with what `handle` makes of its request: a StatusOr of the response message.
template <typename Request, typename Handle>
grpc::ServerUnaryReactor* AnswerUnary(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer& request_buffer,
                                      grpc::ByteBuffer& response_buffer, const Handle& handle) {
  TakeRequestId(context);
  Request request;
  if (absl::Status status = ParseMessage(request_buffer, &request); !status.ok()) {
    return FinishUnary(context, status);
  }
  const auto response = handle(request);
  if (response.ok()) response_buffer = SerializeMessage(*response);
  return FinishUnary(context, response.status());
}

}  // namespace photon
