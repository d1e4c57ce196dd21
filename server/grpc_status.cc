#include "server/grpc_status.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/auth/authenticator.h"

namespace photon {
namespace {

constexpr char kDomain[] = "photon.v1";

// What a client should wait before it tries a full server again.
constexpr std::chrono::seconds kRetryDelay{1};

bool IsFieldCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '[' ||
         c == ']';
}

// Length of the path that `text` begins with, if ": " follows it; else 0.
size_t FieldLength(std::string_view text) {
  if (text.empty() || text[0] < 'a' || text[0] > 'z') return 0;
  const size_t length = std::find_if_not(text.begin(), text.end(), IsFieldCharacter) - text.begin();
  return text.substr(length, 2) == ": " ? length : 0;
}

}  // namespace

std::vector<FieldProblem> FieldProblems(std::string_view message) {
  std::vector<FieldProblem> problems;
  size_t length = FieldLength(message);
  while (length > 0) {
    const std::string_view field = message.substr(0, length);
    message.remove_prefix(length + 2);
    // A semicolon may also be part of a problem.
    size_t end = message.find("; ");
    while (end != std::string_view::npos && FieldLength(message.substr(end + 2)) == 0) {
      end = message.find("; ", end + 2);
    }
    problems.push_back({std::string(field), std::string(message.substr(0, end))});
    message.remove_prefix(end == std::string_view::npos ? message.size() : end + 2);
    length = FieldLength(message);
  }
  return problems;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message(status.message());
  google::rpc::Status details;
  details.set_code(static_cast<int>(status.code()));
  details.set_message(message);
  google::rpc::ErrorInfo info;
  info.set_reason(absl::StatusCodeToString(status.code()));
  info.set_domain(kDomain);
  details.add_details()->PackFrom(info);
  if (absl::IsResourceExhausted(status)) {
    const auto delay = std::chrono::duration_cast<std::chrono::nanoseconds>(
                           RetryDelay(status).value_or(kRetryDelay))
                           .count();
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(delay / 1'000'000'000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(delay % 1'000'000'000));
    details.add_details()->PackFrom(retry);
  }
  if (absl::IsInvalidArgument(status)) {
    google::rpc::BadRequest bad_request;
    for (FieldProblem& problem : FieldProblems(message)) {
      auto& violation = *bad_request.add_field_violations();
      violation.set_field(std::move(problem.field));
      violation.set_description(std::move(problem.problem));
    }
    if (!bad_request.field_violations().empty()) details.add_details()->PackFrom(bad_request);
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message,
                      details.SerializeAsString());
}

}  // namespace photon
