// What an operator can set of the HTTP port.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace photon {

struct HttpOptions {
  // ADDRESS:PORT; port 0 takes a free one. Empty: no HTTP port.
  std::string listen = "127.0.0.1:8000";
  // That read, parse and write for all connections.
  int threads = 2;
  // More are told so with 503 and closed.
  int max_connections = 8192;
  // Of a request line and its headers together.
  int max_header_bytes = 8 << 10;
  int max_body_bytes = 4 << 20;
  // Of a response that is sent whole; longer ones have to be streamed.
  int max_response_bytes = 64 << 20;
  // From a connection's or request's first byte until its headers are complete, and from there
  // until its body is.
  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds body_timeout{60'000};
  // Between requests of a connection.
  std::chrono::milliseconds idle_timeout{75'000};
  // A client that takes nothing of a write for so long loses its connection.
  std::chrono::milliseconds write_timeout{60'000};

  // Every problem: "http.threads: expected 1 or more, got 0".
  std::vector<std::string> Validate() const;
};

}  // namespace photon
