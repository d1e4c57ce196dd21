// TLS from PEM files that may be replaced while the server runs: new connections use the new ones,
// those that exist go on. At least TLS 1.2.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

// OpenSSL's; "struct ssl_ctx_st" is its public name.
struct ssl_ctx_st;

namespace photon {

struct TlsOptions {
  // The server's certificate, followed by those between it and the root; and its private key,
  // without a passphrase. Both empty: no TLS.
  std::string certificate_file;
  std::string key_file;
  // Authorities whose clients are let in; everybody without a certificate of theirs is refused.
  // Empty: clients need no certificate.
  std::string client_ca_file;

  bool enabled() const { return !certificate_file.empty(); }
  bool operator==(const TlsOptions&) const = default;
  // Files that are named.
  std::vector<std::string> Files() const;
  std::vector<std::string> Validate() const;
};

// Contents of the files, in PEM. They belong together: the key is that of the certificate.
struct TlsIdentity {
  std::string certificate_chain;
  std::string private_key;
  std::string client_ca;  // empty: clients need no certificate
  bool operator==(const TlsIdentity&) const = default;
};

// Any thread.
class TlsSource {
 public:
  // kInvalidArgument: a file cannot be read or makes no sense, or they do not belong together.
  static absl::StatusOr<std::unique_ptr<TlsSource>> Create(const TlsOptions& options);

  TlsSource(const TlsSource&) = delete;
  TlsSource& operator=(const TlsSource&) = delete;

  // Reads the files again; whether they say something new. On an error, as while one file of a pair
  // is new and the other old, what was there before stays in use.
  absl::StatusOr<bool> Reload();

  // Never null.
  std::shared_ptr<const TlsIdentity> identity() const;

  // For a server on OpenSSL: to be asked anew for each connection. Offers http/1.1 by ALPN.
  std::shared_ptr<ssl_ctx_st> context() const;

 private:
  struct Loaded {
    std::shared_ptr<const TlsIdentity> identity;
    std::shared_ptr<ssl_ctx_st> context;
  };

  explicit TlsSource(const TlsOptions& options) : options_(options) {}
  static absl::StatusOr<Loaded> Load(const TlsOptions& options);

  const TlsOptions options_;
  mutable std::mutex mutex_;
  Loaded loaded_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace photon
