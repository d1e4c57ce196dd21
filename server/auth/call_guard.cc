#include "server/auth/call_guard.h"

#include <grpc/byte_buffer.h>
#include <grpcpp/impl/rpc_service_method.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <chrono>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/grpc_status.h"

namespace photon {
namespace {

using grpc::internal::MethodHandler;
using grpc::internal::RpcMethod;
using grpc::internal::RpcServiceMethod;

// Ends a call of any kind, whose messages it never looks at.
class RefusedCall final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit RefusedCall(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

std::optional<std::string_view> TokenOf(const grpc::CallbackServerContext& context) {
  const auto [begin, end] = context.client_metadata().equal_range("authorization");
  // Of several, who knows which one a proxy has looked at.
  if (begin == end || std::next(begin) != end) return std::nullopt;
  return BearerToken({begin->second.data(), begin->second.size()});
}

absl::Status Admit(Authenticator& authenticator, Access access, CallContext& context) {
  auto caller = authenticator.Admit(TokenOf(context));
  if (!caller.ok()) return caller.status();
  if (access == Access::kAdmins) {
    if (absl::Status status = caller->CheckAdmin(); !status.ok()) return status;
  }
  context.caller.emplace(*std::move(caller));
  return absl::OkStatus();
}

void Refuse(const MethodHandler::HandlerParameter& call, CallContext& context,
            const absl::Status& status) {
  if (const auto delay = RetryDelay(status)) {
    const auto delay_ms = std::chrono::ceil<std::chrono::milliseconds>(*delay).count();
    context.AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(delay_ms));
  }
  grpc::internal::CallbackBidiHandler<grpc::ByteBuffer, grpc::ByteBuffer> handler(
      [&](grpc::CallbackServerContext*) { return new RefusedCall(ToGrpcStatus(status)); });
  handler.RunHandler(MethodHandler::HandlerParameter(call.call, &context, nullptr, grpc::Status::OK,
                                                     nullptr, call.call_requester));
}

RpcMethod::RpcType TypeOf(const google::protobuf::MethodDescriptor& method) {
  if (method.client_streaming()) {
    return method.server_streaming() ? RpcMethod::BIDI_STREAMING : RpcMethod::CLIENT_STREAMING;
  }
  return method.server_streaming() ? RpcMethod::SERVER_STREAMING : RpcMethod::NORMAL_RPC;
}

class CallContextAllocator final : public grpc::ContextAllocator {
 public:
  grpc::CallbackServerContext* NewCallbackServerContext() override { return new CallContext; }
  void Release(grpc::CallbackServerContext* context) override { delete context; }
};

}  // namespace

// Stands before the handler of one method.
class GuardedService::Handler final : public MethodHandler {
 public:
  Handler(MethodHandler* guarded, Authenticator* authenticator, Access access)
      : guarded_(guarded), authenticator_(authenticator), access_(access) {}

  // Called before RunHandler for methods with one request message, which stays as it is until the
  // call has been admitted.
  void* Deserialize(grpc_call*, grpc_byte_buffer* request, grpc::Status*, void** data) override {
    *data = this;
    return request;
  }

  void RunHandler(const HandlerParameter& call) override {
    auto* context = dynamic_cast<CallContext*>(call.server_context);
    if (context == nullptr) std::abort();  // the builder lacks our allocator
    const bool has_request = call.internal_data == this;
    auto* request = has_request ? static_cast<grpc_byte_buffer*>(call.request) : nullptr;
    const absl::Status admitted = Admit(*authenticator_, access_, *context);
    if (!admitted.ok()) {
      if (request != nullptr) grpc_byte_buffer_destroy(request);
      return Refuse(call, *context, admitted);
    }
    grpc::Status status = call.status;
    void* message = nullptr;
    void* data = nullptr;
    if (has_request) message = guarded_->Deserialize(call.call->call(), request, &status, &data);
    guarded_->RunHandler(
        HandlerParameter(call.call, context, message, status, data, call.call_requester));
  }

 private:
  MethodHandler* const guarded_;
  Authenticator* const authenticator_;
  const Access access_;
};

GuardedService::GuardedService(grpc::Service* service,
                               const google::protobuf::ServiceDescriptor& descriptor,
                               Authenticator* authenticator, Access access) {
  for (int i = 0; i < descriptor.method_count(); ++i) {
    const google::protobuf::MethodDescriptor& method = *descriptor.method(i);
    method_names_.push_back(absl::StrCat("/", descriptor.full_name(), "/", method.name()));
    // Generated services number their methods as the descriptor does.
    MethodHandler* const guarded = (service->*(&GuardedService::GetHandler))(i);
    AddMethod(new RpcServiceMethod(method_names_.back().c_str(), TypeOf(method), nullptr));
    MarkMethodRawCallback(i, new Handler(guarded, authenticator, access));
  }
}

std::unique_ptr<grpc::ContextAllocator> MakeCallContextAllocator() {
  return std::make_unique<CallContextAllocator>();
}

const Caller& CallerOf(const grpc::CallbackServerContext& context) {
  return dynamic_cast<const CallContext&>(context).caller.value();
}

}  // namespace photon
