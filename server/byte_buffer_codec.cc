#include "server/byte_buffer_codec.h"

#include <grpcpp/support/proto_buffer_reader.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/utf8.h"
#include "google/protobuf/descriptor.h"

namespace photon {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Invalid UTF-8 in element `index` of a repeated field, or in a singular one (-1).
std::string FindInFieldValue(const Message& message, const FieldDescriptor* field, int index,
                             const std::string& name) {
  const Reflection* reflection = message.GetReflection();
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    const Message& child = index < 0 ? reflection->GetMessage(message, field)
                                     : reflection->GetRepeatedMessage(message, field, index);
    const std::string path = FindInvalidUtf8(child);
    return path.empty() ? "" : absl::StrCat(name, ".", path);
  }
  if (field->type() != FieldDescriptor::TYPE_STRING) return "";
  const std::string value = index < 0 ? reflection->GetString(message, field)
                                      : reflection->GetRepeatedString(message, field, index);
  return IsValidUtf8(value) ? "" : name;
}

}  // namespace

std::string FindInvalidUtf8(const Message& message) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (!field->is_repeated()) {
      std::string path = FindInFieldValue(message, field, -1, field->name());
      if (!path.empty()) return path;
      continue;
    }
    const int size = message.GetReflection()->FieldSize(message, field);
    for (int i = 0; i < size; ++i) {
      std::string path =
          FindInFieldValue(message, field, i, absl::StrCat(field->name(), "[", i, "]"));
      if (!path.empty()) return path;
    }
  }
  return "";
}

absl::Status ParseMessage(const grpc::ByteBuffer& buffer, Message* message) {
  grpc::ByteBuffer borrowed(buffer);  // shares the slices
  grpc::ProtoBufferReader reader(&borrowed);
  if (reader.status().ok() && message->ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  // The parser stops at the first bad string, having stored it.
  if (const std::string path = FindInvalidUtf8(*message); !path.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not valid UTF-8"));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "the request is no well-formed ", message->GetDescriptor()->full_name(), " message"));
}

grpc::ByteBuffer SerializeMessage(const Message& message) {
  grpc::Slice slice(message.ByteSizeLong());
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace photon
