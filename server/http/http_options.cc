#include "server/http/http_options.h"

#include "absl/strings/str_cat.h"

namespace photon {

std::vector<std::string> HttpOptions::Validate() const {
  std::vector<std::string> problems;
  const auto expect_at_least = [&](const char* name, int64_t least, int64_t value,
                                   const char* unit) {
    if (value >= least) return;
    problems.push_back(
        absl::StrCat("http.", name, ": expected ", least, unit, " or more, got ", value, unit));
  };
  expect_at_least("threads", 1, threads, "");
  expect_at_least("max_connections", 1, max_connections, "");
  expect_at_least("max_header_bytes", 1024, max_header_bytes, "");
  expect_at_least("max_body_bytes", 1024, max_body_bytes, "");
  expect_at_least("max_response_bytes", 1024, max_response_bytes, "");
  expect_at_least("header_timeout", 1, header_timeout.count(), " ms");
  expect_at_least("body_timeout", 1, body_timeout.count(), " ms");
  expect_at_least("idle_timeout", 1, idle_timeout.count(), " ms");
  expect_at_least("write_timeout", 1, write_timeout.count(), " ms");
  return problems;
}

}  // namespace photon
