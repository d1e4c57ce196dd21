#include "server/auth/authenticator.h"

#include <openssl/crypto.h>

#include <cstring>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/auth/token_bucket.h"
#include "server/random.h"

namespace photon {
namespace {

constexpr char kRetryDelayUrl[] = "photon/retry-delay-ns";
constexpr size_t kSchemeLength = 7;  // "Bearer "
constexpr TenantId kSharedTenant{};

// For a caller whose own requests are in the way: when one of them ends is not known.
constexpr std::chrono::seconds kConcurrencyRetry{1};

uint64_t Prefix(const Sha256& hash) {
  uint64_t prefix = 0;
  std::memcpy(&prefix, hash.data(), sizeof(prefix));
  return prefix;
}

// With this process's salt: nobody can make a token for another's tenant, nor try out tokens
// against a tenant's id.
TenantId DeriveTenant(std::string_view kind, std::string_view text) {
  static const std::string salt = RandomHex(16);
  const uint64_t hash =
      Prefix(HashOf(absl::StrCat(salt, std::string(kind), ":", std::string(text))));
  return hash == 0 ? TenantId{1} : TenantId{hash};  // never the shared one
}

}  // namespace

// What one name has used.
struct Caller::Account {
  Account(std::string caller_name, TenantId caller_tenant)
      : name(std::move(caller_name)), tenant(caller_tenant) {}

  void SetLimits(const CallerLimits& new_limits, TimePoint now) {
    std::lock_guard lock(mutex);
    limits = new_limits;
    SetRate(limits.requests_per_minute, now, requests);
    SetRate(limits.tokens_per_minute, now, tokens);
  }

  static void SetRate(std::optional<int64_t> per_minute, TimePoint now,
                      std::optional<TokenBucket>& bucket) {
    if (!per_minute.has_value()) {
      bucket.reset();
    } else if (bucket.has_value()) {
      bucket->SetRate(*per_minute, now);
    } else {
      bucket.emplace(*per_minute, now);
    }
  }

  const std::string name;
  const TenantId tenant;

  std::mutex mutex;
  CallerLimits limits ABSL_GUARDED_BY(mutex);
  std::optional<TokenBucket> requests ABSL_GUARDED_BY(mutex);
  std::optional<TokenBucket> tokens ABSL_GUARDED_BY(mutex);
  int64_t num_concurrent ABSL_GUARDED_BY(mutex) = 0;
};

std::string_view RefusalName(Refusal refusal) {
  constexpr std::array<std::string_view, kNumRefusals> kNames = {"unknown_key", "request_rate",
                                                                 "concurrency", "token_rate"};
  return kNames[static_cast<size_t>(refusal)];
}

Caller::Caller(std::shared_ptr<Account> account, TenantId tenant, const Clock* clock)
    : account_(std::move(account)), tenant_(tenant), clock_(clock) {}

Caller::~Caller() {
  if (account_ == nullptr) return;
  std::lock_guard lock(account_->mutex);
  --account_->num_concurrent;
}

const std::string& Caller::name() const {
  return account_->name;
}

absl::Status Caller::CheckPriority(Priority priority) const {
  std::lock_guard lock(account_->mutex);
  if (priority <= account_->limits.max_priority) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("parameters.priority: this key allows ",
                   std::string(PriorityName(account_->limits.max_priority)), " at most, got ",
                   std::string(PriorityName(priority))));
}

absl::Status Caller::CheckAdmin() const {
  std::lock_guard lock(account_->mutex);
  if (account_->limits.admin) return absl::OkStatus();
  return absl::PermissionDeniedError("this needs a key for administration");
}

void Caller::Charge(int64_t tokens) const {
  std::lock_guard lock(account_->mutex);
  if (account_->tokens.has_value()) account_->tokens->Take(tokens, clock_->Now());
}

void Caller::Charge(const SequenceStats& stats) const {
  if (!stats.first_step.has_value()) return;  // it never ran
  Charge(int64_t{stats.prompt_tokens} - stats.cached_tokens + stats.generated_tokens);
}

Authenticator::Authenticator(OpenAccess access, const Clock* clock)
    : clock_(clock),
      open_(access),
      everybody_(std::make_shared<Caller::Account>("", kSharedTenant)) {
  everybody_->SetLimits({.max_priority = Priority::kHigh, .admin = access.admin}, clock->Now());
}

Authenticator::Authenticator(const std::vector<ApiKey>& keys, const Clock* clock) : clock_(clock) {
  SetKeys(keys);
}

Authenticator::~Authenticator() = default;

void Authenticator::SetKeys(const std::vector<ApiKey>& keys) {
  const TimePoint now = clock_->Now();
  std::lock_guard lock(mutex_);
  Accounts accounts;
  keys_.clear();
  for (const ApiKey& key : keys) {
    std::shared_ptr<Caller::Account>& account = accounts[key.name];
    if (const auto old = accounts_.find(key.name); old != accounts_.end()) account = old->second;
    if (account == nullptr) {
      account = std::make_shared<Caller::Account>(key.name, DeriveTenant("key", key.name));
    }
    account->SetLimits(key.limits, now);
    keys_.emplace(Prefix(key.hash), Key{key.hash, account});
  }
  accounts_ = std::move(accounts);
}

std::shared_ptr<Caller::Account> Authenticator::Find(std::string_view token) const {
  const Sha256 hash = HashOf(token);
  std::lock_guard lock(mutex_);
  // The search's time tells of the hash's begin at most, which no one can choose: it is SHA-256's.
  const auto [begin, end] = keys_.equal_range(Prefix(hash));
  for (auto it = begin; it != end; ++it) {
    const Sha256& known = it->second.hash;
    if (CRYPTO_memcmp(known.data(), hash.data(), hash.size()) == 0) return it->second.account;
  }
  return nullptr;
}

absl::Status Authenticator::Refuse(Refusal refusal, absl::Status status) {
  num_refused_[static_cast<size_t>(refusal)].fetch_add(1, std::memory_order_relaxed);
  return status;
}

absl::StatusOr<Caller> Authenticator::Admit(std::optional<std::string_view> bearer_token) {
  std::shared_ptr<Caller::Account> account = everybody_;
  TenantId tenant = kSharedTenant;
  if (open_.has_value()) {
    if (bearer_token.has_value()) tenant = DeriveTenant("token", *bearer_token);
  } else {
    account = bearer_token.has_value() ? Find(*bearer_token) : nullptr;
    if (account == nullptr) {
      return Refuse(Refusal::kUnknownKey,
                    absl::UnauthenticatedError("this needs a valid API key, as a bearer token"));
    }
    tenant = account->tenant;
  }

  const TimePoint now = clock_->Now();
  std::lock_guard lock(account->mutex);
  const CallerLimits& limits = account->limits;
  if (limits.max_concurrent_requests && account->num_concurrent >= limits.max_concurrent_requests) {
    return Refuse(Refusal::kConcurrency,
                  WithRetryDelay(absl::ResourceExhaustedError(absl::StrCat(
                                     "this key allows ", *limits.max_concurrent_requests,
                                     " requests at a time")),
                                 kConcurrencyRetry));
  }
  if (account->tokens.has_value()) {
    if (const Duration wait = account->tokens->Wait(now); wait > Duration::zero()) {
      return Refuse(
          Refusal::kTokenRate,
          WithRetryDelay(absl::ResourceExhaustedError(absl::StrCat(
                             "this key allows ", *limits.tokens_per_minute, " tokens per minute")),
                         wait));
    }
  }
  if (account->requests.has_value()) {
    if (const Duration wait = account->requests->Wait(now); wait > Duration::zero()) {
      return Refuse(Refusal::kRequestRate,
                    WithRetryDelay(absl::ResourceExhaustedError(
                                       absl::StrCat("this key allows ", *limits.requests_per_minute,
                                                    " requests per minute")),
                                   wait));
    }
    account->requests->Take(1, now);
  }
  ++account->num_concurrent;
  return Caller(account, tenant, clock_);
}

std::array<int64_t, kNumRefusals> Authenticator::num_refused() const {
  std::array<int64_t, kNumRefusals> numbers;
  for (int i = 0; i < kNumRefusals; ++i) numbers[i] = num_refused_[i].load();
  return numbers;
}

std::optional<Duration> RetryDelay(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryDelayUrl);
  int64_t nanoseconds = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &nanoseconds)) {
    return std::nullopt;
  }
  return std::chrono::nanoseconds(nanoseconds);
}

absl::Status WithRetryDelay(absl::Status status, Duration delay) {
  const std::string nanoseconds = absl::StrCat(delay / std::chrono::nanoseconds(1));
  status.SetPayload(kRetryDelayUrl, absl::Cord(absl::string_view(nanoseconds)));
  return status;
}

std::optional<std::string_view> BearerToken(std::string_view authorization) {
  const absl::string_view value(authorization.data(), authorization.size());
  if (!absl::StartsWithIgnoreCase(value, "bearer ")) return std::nullopt;
  return authorization.substr(kSchemeLength);
}

}  // namespace photon
