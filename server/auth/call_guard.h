// Authentication of every gRPC method, in one place: a service stands behind a guarded one, which
// is what the server knows.
//
//   GuardedService guarded(&service, v1::GenerationService::service_full_name(), guard, access);
//   builder.RegisterService(&guarded);
//
// A call that is refused never reaches the service, and its request is not parsed. gRPC's
// interceptors cannot do that on a server, where they only watch; and checks in each method would
// be forgotten in the next one.
#pragma once

#include <grpcpp/impl/service_type.h>
#include <grpcpp/server_context.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "server/auth/authenticator.h"
#include "server/auth/request_registry.h"

namespace photon {

enum class Access : uint8_t {
  kCallers,  // whom the authenticator admits
  kAdmins,   // of them, those who may administer
};

// What is known of a call once it has been admitted.
class CallContext final : public grpc::CallbackServerContext {
 public:
  // From now on the call can be aborted under this id.
  void SetRequestId(const std::string& id);
  // Empty before that.
  const std::string& request_id() const { return request_id_; }

  const std::shared_ptr<const Caller>& caller() const { return caller_; }

  // For calls that carry many requests. The first one takes the caller, and so the call's share of
  // what its key allows ends with it; each further one is admitted as a call would be.
  std::shared_ptr<const Caller> TakeCaller() { return std::move(caller_); }
  absl::StatusOr<std::shared_ptr<const Caller>> AdmitAnother() const;

 private:
  friend class GuardedService;

  Authenticator* authenticator_ = nullptr;
  std::shared_ptr<const Caller> caller_;
  RequestRegistry* registry_ = nullptr;
  std::string request_id_;
  std::unique_ptr<RequestRegistry::Entry> entry_;
};

// What guarded services share; outlives the gRPC server.
struct Guard {
  Authenticator* authenticator = nullptr;
  RequestRegistry* requests = nullptr;
};

class GuardedService final : public grpc::Service {
 public:
  // `service` is a generated callback service, of the name `full_name`. It outlives the gRPC
  // server, whose builder has the allocator below.
  GuardedService(grpc::Service* service, const std::string& full_name, const Guard& guard,
                 Access access);

 private:
  class Handler;

  std::deque<std::string> method_names_;  // gRPC borrows them
};

// For ServerBuilder::SetContextAllocator: makes CallContexts.
std::unique_ptr<grpc::ContextAllocator> MakeCallContextAllocator();

// The call that a context is of. Only within methods of services that are guarded.
CallContext& CallOf(grpc::CallbackServerContext& context);
const CallContext& CallOf(const grpc::CallbackServerContext& context);

}  // namespace photon
