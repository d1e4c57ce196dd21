// What decides who comes in, from files that may change while the server runs.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "server/auth/authenticator.h"
#include "server/auth/file_watch.h"
#include "server/auth/tls.h"

namespace photon {

struct AccessOptions {
  // See api_keys.h. Empty: everybody may call.
  std::string api_keys_file;
  TlsOptions tls;
  // How often the files are looked at.
  std::chrono::milliseconds reload_interval{1000};
  // Without a file of keys: whether everybody may call AdminService, too.
  bool open_administration = false;

  std::vector<std::string> Validate() const;
};

class AccessControl {
 public:
  struct Report {
    bool is_error = false;
    std::string text;
  };
  // Hears what became of the files, on any thread.
  using Reporter = std::function<void(const Report&)>;

  // kInvalidArgument: every problem of the files. `clock` outlives it.
  static absl::StatusOr<std::unique_ptr<AccessControl>> Create(const AccessOptions& options,
                                                               const Clock* clock,
                                                               Reporter reporter);
  AccessControl(const AccessControl&) = delete;
  AccessControl& operator=(const AccessControl&) = delete;

  Authenticator& authenticator() { return *authenticator_; }
  // Null without TLS.
  const TlsSource* tls() const { return tls_.get(); }

  // Has the files read again soon, as happens by itself when they change. One with problems is
  // reported, and what it said before stays in force. Any thread.
  void Reload();

 private:
  AccessControl(const AccessOptions& options, Reporter reporter)
      : options_(options), reporter_(std::move(reporter)) {}

  absl::StatusOr<std::vector<ApiKey>> ReadKeys();
  void ReloadFiles();

  const AccessOptions options_;
  const Reporter reporter_;
  std::unique_ptr<Authenticator> authenticator_;
  std::unique_ptr<TlsSource> tls_;
  std::string keys_text_;             // as last read, of the watch's thread
  std::unique_ptr<FileWatch> watch_;  // the last member: it uses the others
};

}  // namespace photon
