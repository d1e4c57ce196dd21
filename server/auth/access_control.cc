#include "server/auth/access_control.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace photon {

std::vector<std::string> AccessOptions::Validate() const {
  std::vector<std::string> problems = tls.Validate();
  if (reload_interval < std::chrono::milliseconds(1)) {
    problems.push_back(
        absl::StrCat("reload_interval: expected 1 ms or more, got ", reload_interval.count()));
  }
  return problems;
}

absl::StatusOr<std::unique_ptr<AccessControl>> AccessControl::Create(const AccessOptions& options,
                                                                     const Clock* clock,
                                                                     Reporter reporter) {
  std::unique_ptr<AccessControl> access(new AccessControl(options, std::move(reporter)));
  std::vector<std::string> problems;
  if (options.api_keys_file.empty()) {
    access->authenticator_ = std::make_unique<Authenticator>(
        Authenticator::OpenAccess{.admin = options.open_administration}, clock);
  } else {
    const auto keys = access->ReadKeys();
    if (keys.ok()) access->authenticator_ = std::make_unique<Authenticator>(*keys, clock);
    if (!keys.ok()) problems.emplace_back(keys.status().message());
  }
  if (options.tls.enabled()) {
    auto tls = TlsSource::Create(options.tls);
    if (!tls.ok()) problems.emplace_back(tls.status().message());
    if (tls.ok()) access->tls_ = *std::move(tls);
  }
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));

  std::vector<std::string> files = options.tls.Files();
  if (!options.api_keys_file.empty()) files.push_back(options.api_keys_file);
  if (!files.empty()) {
    access->watch_ = std::make_unique<FileWatch>(std::move(files), options.reload_interval,
                                                 [self = access.get()] { self->ReloadFiles(); });
    // What changed between reading and watching.
    access->watch_->Trigger();
  }
  return access;
}

void AccessControl::Reload() {
  if (watch_ != nullptr) watch_->Trigger();
}

absl::StatusOr<std::vector<ApiKey>> AccessControl::ReadKeys() {
  const std::string& path = options_.api_keys_file;
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::strerror(errno)));
  std::string text{std::istreambuf_iterator<char>(file), {}};
  auto keys = ParseApiKeys(text);
  if (!keys.ok()) {
    std::vector<std::string> problems = absl::StrSplit(std::string(keys.status().message()), '\n');
    for (std::string& problem : problems) problem = absl::StrCat(path, ": ", problem);
    return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
  }
  keys_text_ = std::move(text);
  return keys;
}

void AccessControl::ReloadFiles() {
  const auto report_problems = [this](const absl::Status& status) {
    for (const auto problem : absl::StrSplit(status.message(), '\n')) {
      reporter_({.is_error = true, .text = std::string(problem)});
    }
  };
  if (!options_.api_keys_file.empty()) {
    const std::string before = keys_text_;
    const auto keys = ReadKeys();
    if (!keys.ok()) {
      report_problems(keys.status());
    } else if (keys_text_ != before) {
      authenticator_->SetKeys(*keys);
      reporter_({.text = absl::StrCat(options_.api_keys_file, ": ", keys->size(), " keys")});
    }
  }
  if (tls_ != nullptr) {
    const auto changed = tls_->Reload();
    if (!changed.ok()) report_problems(changed.status());
    if (changed.ok() && *changed) {
      reporter_({.text = absl::StrCat(options_.tls.certificate_file, ": in use")});
    }
  }
}

}  // namespace photon
