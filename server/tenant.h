// Whose a call is.
#pragma once

#include <grpcpp/server_context.h>

#include <string>

#include "scheduler/sequence.h"

namespace photon {

// Only within methods of services that are guarded (auth/call_guard.h), where it has been decided.
TenantId TenantOf(const grpc::CallbackServerContext& context);

// A name for people: "shared", or a number that means nothing to another process.
std::string TenantName(TenantId tenant);

}  // namespace photon
