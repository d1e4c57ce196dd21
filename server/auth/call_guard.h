// Authentication of every gRPC method, in one place: a service stands behind a guarded one, which
// is what the server knows.
//
//   GuardedService guarded(&service, *v1::GenerationService::..., &authenticator);
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
#include <optional>
#include <string>

#include "google/protobuf/descriptor.h"
#include "server/auth/authenticator.h"

namespace photon {

enum class Access : uint8_t {
  kCallers,  // whom the authenticator admits
  kAdmins,   // of them, those who may administer
};

// What is known of a call once it has been admitted.
class CallContext final : public grpc::CallbackServerContext {
 public:
  std::optional<Caller> caller;
};

class GuardedService final : public grpc::Service {
 public:
  // `service` is a generated callback service, all of whose methods `descriptor` lists. What is
  // borrowed outlives the gRPC server, whose builder has the allocator below.
  GuardedService(grpc::Service* service, const google::protobuf::ServiceDescriptor& descriptor,
                 Authenticator* authenticator, Access access);

 private:
  class Handler;

  std::deque<std::string> method_names_;  // gRPC borrows them
};

// For ServerBuilder::SetContextAllocator: makes CallContexts.
std::unique_ptr<grpc::ContextAllocator> MakeCallContextAllocator();

// Who makes a call. Only within methods of services that are guarded.
const Caller& CallerOf(const grpc::CallbackServerContext& context);

}  // namespace photon
