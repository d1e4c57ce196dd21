// Whose a call is.
#pragma once

#include <grpcpp/server_context.h>

#include <string>

#include "scheduler/sequence.h"

namespace photon {

// The tenant that the bearer token of the metadata `authorization` names; without one, the tenant
// that all such calls share. Whether the token is a good one is not asked here.
TenantId TenantOf(const grpc::CallbackServerContext& context);

// A name for people: "shared", or a number that means nothing to another process.
std::string TenantName(TenantId tenant);

}  // namespace photon
