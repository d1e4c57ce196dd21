#include "server/auth/call_guard.h"

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/impl/codegen/server_callback_handlers.h>
#include <grpcpp/impl/rpc_service_method.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <chrono>
#include <cstdlib>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
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
  // Of methods that no service has. gRPC releases contexts that it has made itself, too, which are
  // not on the heap: so it makes none.
  grpc::GenericCallbackServerContext* NewGenericCallbackServerContext() override {
    return new grpc::GenericCallbackServerContext;
  }
  void Release(grpc::CallbackServerContext* context) override { delete context; }
  void Release(grpc::GenericCallbackServerContext* context) override { delete context; }
};

}  // namespace

// Stands before the handler of one method.
class GuardedService::Handler final : public MethodHandler {
 public:
  Handler(MethodHandler* guarded, const Guard& guard, Access access)
      : guarded_(guarded), guard_(guard), access_(access) {}

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
    const absl::Status admitted = Admit(*context);
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
  absl::Status Admit(CallContext& context) const {
    auto caller = guard_.authenticator->Admit(TokenOf(context));
    if (!caller.ok()) return caller.status();
    if (access_ == Access::kAdmins) {
      if (absl::Status status = caller->CheckAdmin(); !status.ok()) return status;
    }
    context.authenticator_ = guard_.authenticator;
    context.caller_ = std::make_shared<const Caller>(*std::move(caller));
    context.registry_ = guard_.requests;
    return absl::OkStatus();
  }

  MethodHandler* const guarded_;
  const Guard guard_;
  const Access access_;
};

GuardedService::GuardedService(grpc::Service* service, const std::string& full_name,
                               const Guard& guard, Access access) {
  const google::protobuf::ServiceDescriptor* found =
      google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(full_name);
  if (found == nullptr) std::abort();  // not a generated service
  const google::protobuf::ServiceDescriptor& descriptor = *found;
  for (int i = 0; i < descriptor.method_count(); ++i) {
    const google::protobuf::MethodDescriptor& method = *descriptor.method(i);
    method_names_.push_back(absl::StrCat("/", descriptor.full_name(), "/", method.name()));
    // Generated services number their methods as the descriptor does.
    MethodHandler* const guarded = (service->*(&GuardedService::GetHandler))(i);
    AddMethod(new RpcServiceMethod(method_names_.back().c_str(), TypeOf(method), nullptr));
    MarkMethodRawCallback(i, new Handler(guarded, guard, access));
  }
}

std::unique_ptr<grpc::ContextAllocator> MakeCallContextAllocator() {
  return std::make_unique<CallContextAllocator>();
}

CallContext& CallOf(grpc::CallbackServerContext& context) {
  return dynamic_cast<CallContext&>(context);
}

const CallContext& CallOf(const grpc::CallbackServerContext& context) {
  return dynamic_cast<const CallContext&>(context);
}

absl::StatusOr<std::shared_ptr<const Caller>> CallContext::AdmitAnother() const {
  auto caller = authenticator_->Admit(TokenOf(*this));
  if (!caller.ok()) return caller.status();
  return std::make_shared<const Caller>(*std::move(caller));
}

void CallContext::SetRequestId(const std::string& id) {
  request_id_ = id;
  if (registry_ == nullptr) return;
  // gRPC's objects around a call end before it does.
  grpc_call_ref(c_call());
  const std::shared_ptr<grpc_call> call(c_call(), grpc_call_unref);
  entry_ = registry_->Add(id, [call] { grpc_call_cancel(call.get(), nullptr); });
}

}  // namespace photon
