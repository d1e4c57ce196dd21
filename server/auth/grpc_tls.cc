#include "server/auth/grpc_tls.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include <cstdlib>
#include <mutex>

namespace photon {
namespace {

// gRPC's C++ layer knows certificates that never change; its C layer, which is as public, asks for
// them at each handshake.
class TlsCredentials final : public grpc::ServerCredentials {
 public:
  explicit TlsCredentials(const TlsSource* source) : source_(source) {
    const bool verify_clients = !source->identity()->client_ca.empty();
    grpc_ssl_server_credentials_options* options =
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            verify_clients ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                           : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            &TlsCredentials::Fetch, this);
    credentials_ = grpc_ssl_server_credentials_create_with_options(options);
  }
  ~TlsCredentials() override { grpc_server_credentials_release(credentials_); }

  // Calls are authenticated elsewhere, see call_guard.h.
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {
    std::abort();
  }

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  // At each handshake of the port.
  static grpc_ssl_certificate_config_reload_status Fetch(
      void* credentials, grpc_ssl_server_certificate_config** config) {
    auto* self = static_cast<TlsCredentials*>(credentials);
    std::lock_guard lock(self->mutex_);
    std::shared_ptr<const TlsIdentity> identity = self->source_->identity();
    if (identity == self->in_use_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {identity->private_key.c_str(),
                                             identity->certificate_chain.c_str()};
    // gRPC wants authorities even where it asks clients for nothing, and then uses none.
    const std::string& authorities =
        identity->client_ca.empty() ? identity->certificate_chain : identity->client_ca;
    *config = grpc_ssl_server_certificate_config_create(authorities.c_str(), &pair, 1);
    self->in_use_ = std::move(identity);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const TlsSource* const source_;
  grpc_server_credentials* credentials_ = nullptr;
  std::mutex mutex_;
  std::shared_ptr<const TlsIdentity> in_use_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> TlsServerCredentials(const TlsSource* source) {
  return std::make_shared<TlsCredentials>(source);
}

}  // namespace photon
