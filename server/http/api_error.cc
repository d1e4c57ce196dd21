#include "server/http/api_error.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "server/auth/authenticator.h"

namespace photon {
namespace {

// Unless the error knows better.
constexpr Duration kRetryDelay = std::chrono::seconds(1);

struct Kind {
  int http_status;
  const char* type;
  const char* code;  // null: none
};

Kind KindOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
      return {400, "invalid_request_error", nullptr};
    case absl::StatusCode::kNotFound:
      return {404, "invalid_request_error", "not_found"};
    case absl::StatusCode::kUnauthenticated:
      return {401, "invalid_request_error", "invalid_api_key"};
    case absl::StatusCode::kPermissionDenied:
      return {403, "invalid_request_error", "permission_denied"};
    case absl::StatusCode::kResourceExhausted:
      return {429, "rate_limit_error", "resource_exhausted"};
    case absl::StatusCode::kUnavailable:
      return {503, "server_error", "unavailable"};
    case absl::StatusCode::kDeadlineExceeded:
      return {504, "server_error", "deadline_exceeded"};
    case absl::StatusCode::kCancelled:
      return {499, "server_error", "cancelled"};
    default:
      return {500, "server_error", "internal"};
  }
}

// "prompt[2]" of "prompt[2]: has 9000 tokens, ...".
std::optional<std::string_view> FieldOf(std::string_view message) {
  const size_t end = message.find(": ");
  if (end == std::string_view::npos || end == 0) return std::nullopt;
  const std::string_view field = message.substr(0, end);
  const auto is_part = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '[' ||
           c == ']';
  };
  if (!std::all_of(field.begin(), field.end(), is_part)) return std::nullopt;
  return field;
}

}  // namespace

int HttpStatusOf(const absl::Status& error) {
  return KindOf(error.code()).http_status;
}

std::string ApiErrorJson(const absl::Status& error) {
  const Kind kind = KindOf(error.code());
  const std::string message(error.message());
  nlohmann::ordered_json body = {
      {"message", message}, {"type", kind.type}, {"param", nullptr}, {"code", nullptr}};
  if (const auto field = FieldOf(message)) body["param"] = *field;
  if (kind.code != nullptr) body["code"] = kind.code;
  return nlohmann::ordered_json{{"error", body}}.dump(
      -1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

HttpResponse ApiErrorResponse(const absl::Status& error) {
  return ApiErrorResponse(error, HttpStatusOf(error));
}

HttpResponse ApiErrorResponse(const absl::Status& error, int http_status) {
  HttpResponse response;
  response.head.status = http_status;
  response.head.headers = {{"content-type", "application/json"}};
  if (http_status == 429 || http_status == 503) {
    const auto delay = RetryDelay(error).value_or(kRetryDelay);
    const auto seconds = std::chrono::ceil<std::chrono::seconds>(delay).count();
    response.head.headers.emplace_back("retry-after", absl::StrCat(seconds));
  }
  if (http_status == 401) response.head.headers.emplace_back("www-authenticate", "Bearer");
  response.body = ApiErrorJson(error);
  return response;
}

}  // namespace photon
