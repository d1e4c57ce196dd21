// The gRPC server: where it listens, who may come in, and what a connection may do.
//
//   client ──▶ ConnectionGate ──▶ TLS ──▶ grpc::Server ──▶ GuardedService ──▶ service
//   prober ──▶ plain health port ──▶ a grpc::Server with the health service alone
#pragma once

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/auth/access_control.h"
#include "server/auth/call_guard.h"
#include "server/auth/connection_gate.h"
#include "server/health_service.h"
#include "server/options.h"

namespace photon {

class GrpcEndpoint {
 public:
  struct Service {
    grpc::Service* service = nullptr;
    std::string full_name;
    Access access = Access::kCallers;
  };

  // Binds; connections wait until Open. Every service is guarded; the health service is open to
  // everybody, and so is reflection where it is on. kUnavailable: an address cannot be bound. What
  // is borrowed outlives the endpoint.
  static absl::StatusOr<std::unique_ptr<GrpcEndpoint>> Start(const ServerOptions& options,
                                                             const std::vector<Service>& services,
                                                             HealthService* health,
                                                             AccessControl* access,
                                                             RequestRegistry* requests);
  ~GrpcEndpoint();
  GrpcEndpoint(const GrpcEndpoint&) = delete;
  GrpcEndpoint& operator=(const GrpcEndpoint&) = delete;

  // Lets connections in. Once.
  void Open();

  // Takes no more connections from sockets that others share. Any thread.
  void LeaveToOthers();

  // Takes no more connections and calls, soon, but on the health port; calls that are there go on.
  // Clients hear of it (GOAWAY), and connect again for new calls, to whoever listens there then. A
  // call that crosses the message ends with CANCELLED or UNAVAILABLE. Any thread.
  void Drain();

  // With the ports that were taken; the second is empty where there is none.
  const std::string& address() const { return gate_->address(); }
  std::string health_address() const;

  int num_connections() const { return gate_->num_connections(); }
  int64_t num_connections_refused() const { return gate_->num_refused(); }

  // Takes no more calls, and ends those that are left after `patience`. Returns once all have
  // ended.
  void Stop(std::chrono::milliseconds patience);

 private:
  GrpcEndpoint() = default;

  std::deque<GuardedService> guarded_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<grpc::Server> health_server_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> health_acceptor_;
  std::unique_ptr<grpc::ServerCompletionQueue> drained_;  // where gRPC says that Drain is done
  // After the servers: gates stop handing on connections before the servers end.
  std::unique_ptr<ConnectionGate> gate_;
  std::unique_ptr<ConnectionGate> health_gate_;
};

}  // namespace photon
