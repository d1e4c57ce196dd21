#include "server/options.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/auth/inherited_socket.h"

namespace photon {
namespace {

constexpr std::string_view kInherited = "fd:";

// "127.0.0.1:50051", "[::1]:0", "localhost:1", "unix:/run/photon.sock", "fd:3".
bool IsLoopback(std::string_view address) {
  if (address.starts_with(kInherited)) {
    int descriptor = -1;
    const bool is_number =
        absl::SimpleAtoi(std::string(address.substr(kInherited.size())), &descriptor);
    // What is none fails where it is opened.
    return !is_number || IsLoopback(AddressOf(descriptor));
  }
  if (address.starts_with("unix:") || address.starts_with("unix-abstract:")) return true;
  const std::string_view host = address.substr(0, address.rfind(':'));
  return host == "localhost" || host == "[::1]" || host.starts_with("127.");
}

bool HasPort(std::string_view address) {
  if (address.starts_with(kInherited)) return true;
  if (address.starts_with("unix:") || address.starts_with("unix-abstract:")) return true;
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return false;
  const std::string_view port = address.substr(colon + 1);
  return !port.empty() && port.size() <= 5 &&
         std::all_of(port.begin(), port.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

bool ServerOptions::IsLocal() const {
  return IsLoopback(listen);
}

std::vector<std::string> ServerOptions::Validate() const {
  std::vector<std::string> problems;
  const auto expect_at_least = [&](const char* name, int64_t least, int64_t value,
                                   const char* unit) {
    if (value >= least) return;
    problems.push_back(
        absl::StrCat(name, ": expected ", least, unit, " or more, got ", value, unit));
  };
  const auto check_address = [&](const char* name, const std::string& address, bool plaintext) {
    if (!HasPort(address)) {
      problems.push_back(absl::StrCat(name, ": expected ADDRESS:PORT or unix:PATH, got ", address));
    } else if (plaintext && !insecure && !IsLoopback(address)) {
      problems.push_back(absl::StrCat(name, ": plaintext on ", address,
                                      " can be read by others; needs --insecure"));
    }
  };
  check_address("listen", listen, /*plaintext=*/!access.tls.enabled());
  // Says nothing that others may not read.
  if (!health_listen.empty()) check_address("health_listen", health_listen, /*plaintext=*/false);
  if (!http.listen.empty()) {
    if (http.listen.starts_with("unix")) {
      problems.push_back(absl::StrCat("http_listen: expected ADDRESS:PORT, got ", http.listen));
    } else {
      check_address("http_listen", http.listen, /*plaintext=*/!access.tls.enabled());
    }
    for (std::string& problem : http.Validate()) problems.push_back(std::move(problem));
  }
  for (std::string& problem : access.Validate()) problems.push_back(std::move(problem));
  expect_at_least("drain_pause", 0, drain_pause.count(), " ms");
  expect_at_least("drain_timeout", 0, drain_timeout.count(), " ms");
  for (std::string& problem : supervisor.Validate()) problems.push_back(std::move(problem));
  expect_at_least("max_message_bytes", 1024, max_message_bytes, "");
  expect_at_least("max_unread_bytes", 1024, max_unread_bytes, "");
  expect_at_least("max_streams_per_connection", 1, max_streams_per_connection, "");
  expect_at_least("connections.max_connections", 1, connections.max_connections, "");
  expect_at_least("connections.max_per_address", 1, connections.max_per_address, "");
  expect_at_least("max_metadata_bytes", 1024, max_metadata_bytes, "");
  expect_at_least("handshake_timeout", 1, handshake_timeout.count(), " ms");
  expect_at_least("max_connection_idle", 0, max_connection_idle.count(), " ms");
  expect_at_least("max_connection_age", 0, max_connection_age.count(), " ms");
  expect_at_least("max_connection_age_grace", 0, max_connection_age_grace.count(), " ms");
  expect_at_least("keepalive_interval", 1000, keepalive_interval.count(), " ms");
  expect_at_least("keepalive_timeout", 1000, keepalive_timeout.count(), " ms");
  expect_at_least("min_client_ping_interval", 0, min_client_ping_interval.count(), " ms");
  expect_at_least("requests.max_samples", 1, requests.max_samples, "");
  expect_at_least("requests.max_prompts", 1, requests.max_prompts, "");
  expect_at_least("requests.max_questions", 1, requests.max_questions, "");
  expect_at_least("requests.max_sequences", 1, requests.max_sequences, "");
  expect_at_least("documents.max_per_tenant", 0, documents.max_per_tenant, "");
  expect_at_least("documents.max_in_total", 0, documents.max_in_total, "");
  expect_at_least("documents.max_bytes", 1, documents.max_bytes, "");
  expect_at_least("documents.max_name_bytes", 0, documents.max_name_bytes, "");
  expect_at_least("documents.default_ttl", 1, documents.default_ttl.count(), " s");
  expect_at_least("documents.max_ttl", 1, documents.max_ttl.count(), " s");
  return problems;
}

}  // namespace photon
