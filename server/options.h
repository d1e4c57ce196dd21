// What an operator can set of the server.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "server/auth/access_control.h"
#include "server/auth/connection_gate.h"
#include "server/http/http_options.h"
#include "server/supervisor_options.h"

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
  // Address and port, "unix:PATH", or an inherited socket as "fd:3". Port 0 takes a free one.
  std::string listen = "127.0.0.1:50051";
  // Plaintext on addresses other than loopback ones has to be allowed; unix sockets are fine.
  bool insecure = false;
  // A second, plain port that serves health alone: for probes that have no certificate. Empty:
  // none.
  std::string health_listen;
  AccessOptions access;
  // Whether reflection tells everybody what services there are. Absent: unless keys are needed.
  std::optional<bool> reflection;
  // How long a drain goes on taking requests, so that balancers hear of it first.
  std::chrono::milliseconds drain_pause{0};
  // How long it lets accepted requests go on after that.
  std::chrono::milliseconds drain_timeout{30'000};
  SupervisorOptions supervisor;
  // Of a request message, and about of a KServe response that is not streamed.
  int max_message_bytes = 4 << 20;
  // Output of a call that may wait unread before its sequences pause; they share it equally.
  int64_t max_unread_bytes = 1 << 20;
  ConnectionLimits connections;
  // Calls at a time of one connection; more wait at the client.
  int max_streams_per_connection = 1024;
  // Of the metadata of a call, with 32 bytes added for each entry.
  int max_metadata_bytes = 16 << 10;
  // How long a client may take to say what it wants of a connection.
  std::chrono::milliseconds handshake_timeout{20'000};
  // A connection without calls ends after this long, 0: never.
  std::chrono::milliseconds max_connection_idle{30 * 60'000};
  // Clients are told to connect again after this long, about, so that those who choose between
  // servers choose anew; 0: never. Calls go on, for the grace at most; 0: for as long as they need.
  std::chrono::milliseconds max_connection_age{0};
  std::chrono::milliseconds max_connection_age_grace{0};
  // A connection without traffic for so long is pinged, and closed if no answer comes in
  // keepalive_timeout.
  std::chrono::milliseconds keepalive_interval{60'000};
  std::chrono::milliseconds keepalive_timeout{20'000};
  // Clients that ping more often than this lose their connection.
  std::chrono::milliseconds min_client_ping_interval{10'000};
  HttpOptions http;
  RequestLimits requests;
  DocumentLimits documents;

  // Whether only this machine can reach `listen`.
  bool IsLocal() const;

  // Every problem: "drain_timeout: expected 0 or more, got -1 ms".
  std::vector<std::string> Validate() const;
};

}  // namespace photon
