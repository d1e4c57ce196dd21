// Errors as the completions API words them.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "server/http/http_message.h"

namespace photon {

// The HTTP status code of an error.
int HttpStatusOf(const absl::Status& error);

// {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}. A message that begins with
// the name of a field, "top_p: expected ...", names it as `param`.
std::string ApiErrorJson(const absl::Status& error);

// A response with that, and Retry-After where trying again helps.
HttpResponse ApiErrorResponse(const absl::Status& error);
HttpResponse ApiErrorResponse(const absl::Status& error, int http_status);

}  // namespace photon
