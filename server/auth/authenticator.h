// Who calls, and whether they may: bearer tokens to callers, and the limits of each. The gRPC
// server and the HTTP server share one; it knows neither.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "scheduler/clock.h"
#include "scheduler/sequence.h"
#include "server/auth/api_keys.h"

namespace photon {

// Why requests were refused.
enum class Refusal : uint8_t {
  kUnknownKey,
  kRequestRate,
  kConcurrency,
  kTokenRate,
};
inline constexpr int kNumRefusals = 4;
std::string_view RefusalName(Refusal refusal);  // "unknown_key", "request_rate", ...

// One admitted request. Counts as one of its caller's concurrent requests while it lives.
class Caller {
 public:
  ~Caller();
  Caller(Caller&&) noexcept = default;
  Caller& operator=(Caller&&) = delete;

  // The name in the file of keys; empty where there is none.
  const std::string& name() const;
  TenantId tenant() const { return tenant_; }

  // kPermissionDenied: the key does not allow requests of such a priority.
  absl::Status CheckPriority(Priority priority) const;
  // kPermissionDenied: the key does not allow administration.
  absl::Status CheckAdmin() const;

  // Takes tokens from what the caller may use per minute. Any thread.
  void Charge(int64_t tokens) const;
  // What a sequence has cost: its output, and its prompt but for what the cache had of it.
  void Charge(const SequenceStats& stats) const;

 private:
  friend class Authenticator;
  struct Account;
  Caller(std::shared_ptr<Account> account, TenantId tenant, const Clock* clock);

  std::shared_ptr<Account> account_;  // null after a move
  TenantId tenant_;
  const Clock* clock_;
};

// Any thread.
class Authenticator {
 public:
  struct OpenAccess {
    bool admin = false;
  };

  // Admits everybody, without limits. The token, if any, is the tenant: whoever has it shares
  // documents and cached prompts with others who have it. `clock` outlives the callers.
  Authenticator(OpenAccess access, const Clock* clock);

  // Admits who has one of `keys`. The name is the tenant.
  Authenticator(const std::vector<ApiKey>& keys, const Clock* clock);

  ~Authenticator();
  Authenticator(const Authenticator&) = delete;
  Authenticator& operator=(const Authenticator&) = delete;

  // Whether a key is needed.
  bool needs_key() const { return !open_.has_value(); }

  // Replaces the keys of an authenticator that has some. Callers of the same name keep what they
  // have used of their limits; requests that were admitted go on.
  void SetKeys(const std::vector<ApiKey>& keys);

  // kUnauthenticated: no key, or not one of ours; the message does not say which.
  // kResourceExhausted: a limit of the key is reached; RetryDelay says when to come again.
  absl::StatusOr<Caller> Admit(std::optional<std::string_view> bearer_token);

  // Refused since the start, by Refusal.
  std::array<int64_t, kNumRefusals> num_refused() const;

 private:
  using Accounts = std::map<std::string, std::shared_ptr<Caller::Account>>;  // by name
  struct Key {
    Sha256 hash;
    std::shared_ptr<Caller::Account> account;
  };

  absl::Status Refuse(Refusal refusal, absl::Status status);
  std::shared_ptr<Caller::Account> Find(std::string_view token) const;

  const Clock* const clock_;
  const std::optional<OpenAccess> open_;
  std::shared_ptr<Caller::Account> everybody_;  // of an open one
  std::array<std::atomic<int64_t>, kNumRefusals> num_refused_ = {};

  mutable std::mutex mutex_;
  Accounts accounts_ ABSL_GUARDED_BY(mutex_);
  std::multimap<uint64_t, Key> keys_ ABSL_GUARDED_BY(mutex_);  // by the begin of the hash
};

// When to try again, of a status with kResourceExhausted that says so.
std::optional<Duration> RetryDelay(const absl::Status& status);
absl::Status WithRetryDelay(absl::Status status, Duration delay);

// The token of "Bearer TOKEN", the value of an `authorization` header; the scheme in any case.
std::optional<std::string_view> BearerToken(std::string_view authorization);

}  // namespace photon
