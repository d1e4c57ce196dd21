// Listening sockets that whoever started the process has opened, as systemd does for socket units.
// They outlive the process, and with them the connections in their queues: one server can follow
// another without a connection lost.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace photon {

// "fd:3" of "fd:grpc", by the names in LISTEN_FDNAMES of `environment`, where LISTEN_FDS and
// LISTEN_PID say that there are any for this process. Other addresses stay what they are.
// kInvalidArgument: there is no such socket.
absl::StatusOr<std::string> ResolveInherited(const std::string& address,
                                             const std::map<std::string, std::string>& environment);

bool IsInherited(const std::string& address);

// A duplicate of "fd:3", which does not block. kUnavailable: it is no listening socket.
absl::StatusOr<int> OpenInherited(const std::string& address);

// What it listens on: "127.0.0.1:50051", "[::]:50051" or "unix:PATH".
std::string AddressOf(int socket);

}  // namespace photon
