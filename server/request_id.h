// The id under which a call appears in the log and at the client: metadata `x-request-id`.
#pragma once

#include <grpcpp/server_context.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace photon {

// `sent` if it is an id of 1 to 128 characters, else a new one.
std::string RequestIdOr(std::optional<std::string_view> sent);

// The client's id if it sent one of 1 to 128 characters, else a new one; sent back to it in the
// response's initial metadata. From now on AdminService can abort the call by it.
std::string EchoRequestId(grpc::CallbackServerContext* context);

// 64 random bits. Any thread.
uint64_t RandomBits();

}  // namespace photon
