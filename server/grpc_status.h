// The status of a call, with details for programs: google.rpc.Status in `grpc-status-details-bin`.
#pragma once

#include <grpcpp/support/status.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace photon {

// Both kinds of code have the same numbers. Details: ErrorInfo always; RetryInfo with
// kResourceExhausted; BadRequest with a kInvalidArgument whose message names fields.
grpc::Status ToGrpcStatus(const absl::Status& status);

struct FieldProblem {
  std::string field;
  std::string problem;
};

// Of a message as the readers of requests write it: "top_p: expected (0, 1], got 2; stop[3]: ...".
// Empty for any other.
std::vector<FieldProblem> FieldProblems(std::string_view message);

}  // namespace photon
