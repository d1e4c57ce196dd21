// What an operator can set of the server.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace photon {

// Of one call. A call that asks for more is refused, naming the field and the limit.
struct RequestLimits {
  int max_samples = 1024;    // of a prompt or question
  int max_prompts = 1024;    // of a batch
  int max_questions = 1024;  // of an Ask
  // Samples of all prompts or questions together; the scheduler's queue limits them too.
  int max_sequences = 1024;
};

struct DocumentLimits {
  int max_per_tenant = 64;
  int max_in_total = 1024;
  int max_bytes = 4 << 20;  // of a document while it is uploaded
  int max_name_bytes = 256;
  std::chrono::seconds default_ttl{3600};
  std::chrono::seconds max_ttl{24 * 3600};
};

struct ServerOptions {
  // Address and port, or "unix:PATH". Port 0 takes a free one.
  std::string listen = "127.0.0.1:50051";
  // Allows plaintext on addresses other than loopback ones.
  bool insecure = false;
  // How long a drain lets accepted requests go on.
  std::chrono::milliseconds drain_timeout{30'000};
  // Of a request message.
  int max_message_bytes = 4 << 20;
  // Output of a call that may wait unread before its sequences pause; they share it equally.
  int64_t max_unread_bytes = 1 << 20;
  // Calls at a time of one connection; more wait at the client.
  int max_streams_per_connection = 1024;
  // A connection without traffic for so long is pinged, and closed if no answer comes in
  // keepalive_timeout.
  std::chrono::milliseconds keepalive_interval{60'000};
  std::chrono::milliseconds keepalive_timeout{20'000};
  // Clients that ping more often than this lose their connection.
  std::chrono::milliseconds min_client_ping_interval{10'000};
  RequestLimits requests;
  DocumentLimits documents;

  // Every problem: "drain_timeout: expected 0 or more, got -1 ms".
  std::vector<std::string> Validate() const;
};

}  // namespace photon
