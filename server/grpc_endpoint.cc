#include "server/grpc_endpoint.h"

#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>
#include <grpcpp/security/server_credentials.h>

#include <algorithm>
#include <climits>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/auth/grpc_tls.h"

namespace photon {
namespace {

using grpc::experimental::ExternalConnectionAcceptor;

// Of the health port, which whole clusters may probe but which carries nothing.
constexpr ConnectionLimits kHealthConnections = {.max_connections = 256, .max_per_address = 256};

// Linking gRPC's reflection turns it on in every server of the process: it is taken out again.
class Reflection final : public grpc::ServerBuilderOption {
 public:
  explicit Reflection(bool on) : on_(on) {}

  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    std::erase_if(*plugins,
                  [](const auto& plugin) { return plugin->name() == "proto_server_reflection"; });
    if (on_) plugins->push_back(std::make_unique<grpc::reflection::ProtoServerReflectionPlugin>());
  }

 private:
  const bool on_;
};

int Milliseconds(std::chrono::milliseconds value) {
  return static_cast<int>(std::min<int64_t>(value.count(), INT_MAX));
}

// 0 means never, here and in the options.
int MillisecondsOrNever(std::chrono::milliseconds value) {
  return value.count() == 0 ? INT_MAX : Milliseconds(value);
}

void SetLimits(const ServerOptions& options, grpc::ServerBuilder& builder) {
  const auto set = [&](const char* argument, int value) {
    builder.AddChannelArgument(argument, value);
  };
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  // A message is measured before it is unpacked: a small one could become gigabytes.
  for (const auto algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  set(GRPC_ARG_MAX_METADATA_SIZE, options.max_metadata_bytes);
  set(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams_per_connection);
  set(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, Milliseconds(options.handshake_timeout));
  set(GRPC_ARG_MAX_CONNECTION_IDLE_MS, MillisecondsOrNever(options.max_connection_idle));
  set(GRPC_ARG_MAX_CONNECTION_AGE_MS, MillisecondsOrNever(options.max_connection_age));
  set(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, MillisecondsOrNever(options.max_connection_age_grace));
  set(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options.keepalive_interval));
  set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(options.keepalive_timeout));
  set(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      Milliseconds(options.min_client_ping_interval));
  set(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
}

std::unique_ptr<ExternalConnectionAcceptor> AddAcceptor(
    grpc::ServerBuilder& builder, std::shared_ptr<grpc::ServerCredentials> credentials) {
  using Type = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
  return builder.experimental().AddExternalConnectionAcceptor(Type::FROM_FD,
                                                              std::move(credentials));
}

ConnectionGate::Receiver HandTo(ExternalConnectionAcceptor* acceptor) {
  return [acceptor](int listener_fd, int fd) {
    ExternalConnectionAcceptor::NewConnectionParameters connection;
    connection.listener_fd = listener_fd;
    connection.fd = fd;
    acceptor->HandleNewConnection(&connection);
  };
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcEndpoint>> GrpcEndpoint::Start(
    const ServerOptions& options, const std::vector<Service>& services, HealthService* health,
    AccessControl* access, RequestRegistry* requests) {
  std::unique_ptr<GrpcEndpoint> endpoint(new GrpcEndpoint);
  auto gate = ConnectionGate::Listen(options.listen, options.connections);
  if (!gate.ok()) return gate.status();
  endpoint->gate_ = *std::move(gate);
  if (!options.health_listen.empty()) {
    auto health_gate = ConnectionGate::Listen(options.health_listen, kHealthConnections);
    if (!health_gate.ok()) return health_gate.status();
    endpoint->health_gate_ = *std::move(health_gate);
  }

  grpc::ServerBuilder builder;
  SetLimits(options, builder);
  builder.SetContextAllocator(MakeCallContextAllocator());
  const Guard guard = {.authenticator = &access->authenticator(), .requests = requests};
  for (const Service& service : services) {
    endpoint->guarded_.emplace_back(service.service, service.full_name, guard, service.access);
    builder.RegisterService(&endpoint->guarded_.back());
  }
  builder.RegisterService(health);
  builder.SetOption(std::make_unique<Reflection>(
      options.reflection.value_or(!access->authenticator().needs_key())));
  endpoint->acceptor_ =
      AddAcceptor(builder, access->tls() == nullptr ? grpc::InsecureServerCredentials()
                                                    : TlsServerCredentials(access->tls()));
  endpoint->drained_ = builder.AddCompletionQueue(/*is_frequently_polled=*/false);
  endpoint->server_ = builder.BuildAndStart();
  if (endpoint->server_ == nullptr) return absl::InternalError("gRPC does not start");

  if (endpoint->health_gate_ != nullptr) {
    grpc::ServerBuilder health_builder;
    SetLimits(options, health_builder);
    health_builder.SetOption(std::make_unique<Reflection>(false));
    health_builder.RegisterService(health);
    endpoint->health_acceptor_ = AddAcceptor(health_builder, grpc::InsecureServerCredentials());
    endpoint->health_server_ = health_builder.BuildAndStart();
    if (endpoint->health_server_ == nullptr) return absl::InternalError("gRPC does not start");
  }
  return endpoint;
}

void GrpcEndpoint::Open() {
  gate_->Open(HandTo(acceptor_.get()));
  if (health_gate_ != nullptr) health_gate_->Open(HandTo(health_acceptor_.get()));
}

void GrpcEndpoint::LeaveToOthers() {
  gate_->LeaveToOthers();
  if (health_gate_ != nullptr) health_gate_->LeaveToOthers();
}

// The first half of what grpc::Server::Shutdown does, which then waits for all calls and ends them
// at a time that has to be known beforehand.
void GrpcEndpoint::Drain() {
  gate_->StopListening(
      [this] { grpc_server_shutdown_and_notify(server_->c_server(), drained_->cq(), nullptr); });
}

GrpcEndpoint::~GrpcEndpoint() {
  Stop(std::chrono::milliseconds(0));
  gate_.reset();
  if (drained_ == nullptr) return;
  drained_->Shutdown();
  const auto never = gpr_inf_future(GPR_CLOCK_MONOTONIC);
  while (grpc_completion_queue_next(drained_->cq(), never, nullptr).type != GRPC_QUEUE_SHUTDOWN) {
  }
}

std::string GrpcEndpoint::health_address() const {
  return health_gate_ == nullptr ? "" : health_gate_->address();
}

void GrpcEndpoint::Stop(std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::system_clock::now() + patience;
  for (auto* server : {&server_, &health_server_}) {
    if (*server == nullptr) continue;
    (*server)->Shutdown(deadline);
    (*server)->Wait();
  }
}

}  // namespace photon
