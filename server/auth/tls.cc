#include "server/auth/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace photon {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using BioPtr = std::unique_ptr<BIO, Deleter<BIO_free>>;
using X509Ptr = std::unique_ptr<X509, Deleter<X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;

// The last error of OpenSSL on this thread, and none afterwards.
std::string TakeOpenSslError() {
  const unsigned long error = ERR_peek_last_error();
  ERR_clear_error();
  const char* reason = ERR_reason_error_string(error);
  return reason != nullptr ? reason : "unknown error";
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  if (file) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is larger than ", kMaxFileBytes, " bytes"));
  }
  return text;
}

// The certificates in `pem`; kInvalidArgument: none, or one that is broken.
absl::StatusOr<std::vector<X509Ptr>> ParseCertificates(const std::string& pem) {
  const BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  std::vector<X509Ptr> certificates;
  while (X509* certificate = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(certificate);
  }
  // The search ends where no further certificate begins; anything else is an error within one.
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  const std::string error = TakeOpenSslError();
  if (!at_end) return absl::InvalidArgumentError(absl::StrCat("broken certificate: ", error));
  if (certificates.empty()) return absl::InvalidArgumentError("has no certificate in PEM");
  return certificates;
}

// A passphrase is never asked for on the terminal.
int NoPassphrase(char*, int, int, void*) {
  return 0;
}

int SelectHttp1(SSL*, const unsigned char** selected, unsigned char* selected_size,
                const unsigned char* offered, unsigned int offered_size, void*) {
  static constexpr unsigned char kProtocols[] = "\x08http/1.1";
  unsigned char* match = nullptr;
  const int result = SSL_select_next_proto(&match, selected_size, kProtocols,
                                           sizeof(kProtocols) - 1, offered, offered_size);
  *selected = match;
  return result == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

absl::Status Problem(const std::string& file, std::string problem) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", problem));
}

absl::Status TrustClients(SSL_CTX* context, const std::string& file, const std::string& pem) {
  auto authorities = ParseCertificates(pem);
  if (!authorities.ok()) return Problem(file, std::string(authorities.status().message()));
  for (const X509Ptr& authority : *authorities) {
    if (X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority.get()) != 1 ||
        SSL_CTX_add_client_CA(context, authority.get()) != 1) {
      return Problem(file, TakeOpenSslError());
    }
  }
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  // Sessions are not resumed: a client proves itself in every connection.
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
  SSL_CTX_set_num_tickets(context, 0);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<SSL_CTX>> MakeContext(const TlsOptions& options,
                                                     const TlsIdentity& identity) {
  ERR_clear_error();
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr) return absl::InternalError(TakeOpenSslError());
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_mode(context.get(), SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_alpn_select_cb(context.get(), SelectHttp1, nullptr);

  auto chain = ParseCertificates(identity.certificate_chain);
  if (!chain.ok()) {
    return Problem(options.certificate_file, std::string(chain.status().message()));
  }
  if (SSL_CTX_use_certificate(context.get(), chain->front().get()) != 1) {
    return Problem(options.certificate_file, TakeOpenSslError());
  }
  for (size_t i = 1; i < chain->size(); ++i) {
    if (SSL_CTX_add1_chain_cert(context.get(), (*chain)[i].get()) != 1) {
      return Problem(options.certificate_file, TakeOpenSslError());
    }
  }
  const std::string& pem = identity.private_key;
  const BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  const KeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassphrase, nullptr));
  if (key == nullptr) {
    return Problem(options.key_file,
                   absl::StrCat("no private key without a passphrase: ", TakeOpenSslError()));
  }
  if (X509_check_private_key(chain->front().get(), key.get()) != 1) {
    ERR_clear_error();
    return Problem(options.key_file, absl::StrCat("is not the key of ", options.certificate_file));
  }
  if (SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1) {
    return Problem(options.key_file, TakeOpenSslError());
  }
  if (!identity.client_ca.empty()) {
    const absl::Status status =
        TrustClients(context.get(), options.client_ca_file, identity.client_ca);
    if (!status.ok()) return status;
  }
  return context;
}

}  // namespace

std::vector<std::string> TlsOptions::Files() const {
  std::vector<std::string> files;
  for (const std::string& file : {certificate_file, key_file, client_ca_file}) {
    if (!file.empty()) files.push_back(file);
  }
  return files;
}

std::vector<std::string> TlsOptions::Validate() const {
  std::vector<std::string> problems;
  if (certificate_file.empty() != key_file.empty()) {
    problems.emplace_back("tls_cert, tls_key: one needs the other");
  }
  if (!client_ca_file.empty() && certificate_file.empty()) {
    problems.emplace_back("tls_client_ca: needs tls_cert and tls_key");
  }
  return problems;
}

absl::StatusOr<TlsSource::Loaded> TlsSource::Load(const TlsOptions& options) {
  TlsIdentity identity;
  const std::pair<const std::string*, std::string*> files[] = {
      {&options.certificate_file, &identity.certificate_chain},
      {&options.key_file, &identity.private_key},
      {&options.client_ca_file, &identity.client_ca},
  };
  for (const auto& [path, text] : files) {
    if (path->empty()) continue;
    auto contents = ReadFile(*path);
    if (!contents.ok()) return contents.status();
    if (contents->empty()) return Problem(*path, "is empty");
    *text = *std::move(contents);
  }
  auto context = MakeContext(options, identity);
  if (!context.ok()) return context.status();
  return Loaded{std::make_shared<const TlsIdentity>(std::move(identity)), *std::move(context)};
}

absl::StatusOr<std::unique_ptr<TlsSource>> TlsSource::Create(const TlsOptions& options) {
  auto loaded = Load(options);
  if (!loaded.ok()) return loaded.status();
  std::unique_ptr<TlsSource> source(new TlsSource(options));
  std::lock_guard lock(source->mutex_);
  source->loaded_ = *std::move(loaded);
  return source;
}

absl::StatusOr<bool> TlsSource::Reload() {
  auto loaded = Load(options_);
  if (!loaded.ok()) return loaded.status();
  std::lock_guard lock(mutex_);
  if (*loaded->identity == *loaded_.identity) return false;
  loaded_ = *std::move(loaded);
  return true;
}

std::shared_ptr<const TlsIdentity> TlsSource::identity() const {
  std::lock_guard lock(mutex_);
  return loaded_.identity;
}

std::shared_ptr<ssl_ctx_st> TlsSource::context() const {
  std::lock_guard lock(mutex_);
  return loaded_.context;
}

}  // namespace photon
