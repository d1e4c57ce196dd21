// The id under which a call appears in the log and at the client: metadata `x-request-id`.
#pragma once

#include <grpcpp/server_context.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "server/request_log.h"

namespace photon {

// `sent` if it is an id of 1 to 128 characters, else a new one.
std::string RequestIdOr(std::optional<std::string_view> sent);

// The client's id if it sent one of 1 to 128 characters, else a new one. From now on AdminService
// can abort the call by it.
std::string TakeRequestId(grpc::CallbackServerContext* context);

// Sends the id back, if one was taken: with a response in the initial metadata, with an error that
// comes alone in the trailing metadata. Such an error must have no initial metadata, for proxies
// and gRPC's own retries try a call elsewhere only as long as nothing of an answer has come. Call
// once, before the first write or the end.
enum class Answer : uint8_t { kResponse, kErrorAlone };
void ReturnRequestId(grpc::CallbackServerContext* context, Answer answer);

// What the log calls a call, with the id that TakeRequestId gives it.
RequestName NameCall(grpc::CallbackServerContext* context, std::string_view service,
                     std::string_view method);

// 64 random bits. Any thread.
uint64_t RandomBits();

}  // namespace photon
