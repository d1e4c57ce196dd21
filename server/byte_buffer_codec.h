// Protobuf messages to and from gRPC's buffers. Methods that take text read their requests through
// here, because gRPC itself answers a malformed message without naming the field.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <string>

#include "absl/status/status.h"
#include "google/protobuf/message.h"

namespace photon {

// kInvalidArgument: "prompt.text: is not valid UTF-8", or that the bytes are no such message.
absl::Status ParseMessage(const grpc::ByteBuffer& buffer, google::protobuf::Message* message);

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

// Path of a string field whose value is not valid UTF-8: "parameters.stop.strings[2]"; empty if
// there is none.
std::string FindInvalidUtf8(const google::protobuf::Message& message);

}  // namespace photon
