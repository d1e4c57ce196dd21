// TLS for a gRPC server, from a TlsSource.
//
// gRPC's own watcher of certificate files takes a certificate and a key that do not belong
// together, as while they are being replaced, and then refuses everybody. Here gRPC asks at each
// handshake and is given what TlsSource found good.
#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "server/auth/tls.h"

namespace photon {

// For one listening port. `source` outlives the gRPC server.
std::shared_ptr<grpc::ServerCredentials> TlsServerCredentials(const TlsSource* source);

}  // namespace photon
