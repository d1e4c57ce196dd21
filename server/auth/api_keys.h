// API keys, and the file that lists them: a JSON object per line; empty lines and lines that begin
// with # are skipped.
//
//   {"name": "alice", "sha256": "5e88...", "requests_per_minute": 60, "max_priority": "high"}
//
// A key is 256 random bits, so its plain SHA-256 cannot be inverted by trying: salts and slow
// hashes are for secrets that people choose. Two lines of one name are two keys of one caller, as
// while a key is replaced; they share that caller's limits and must state the same ones.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/sequence.h"

namespace photon {

// What a caller may do. Absent: unlimited.
struct CallerLimits {
  // Also the most that may come at once after a pause.
  std::optional<int64_t> requests_per_minute;
  std::optional<int64_t> max_concurrent_requests;
  // Of prompts, but for what the cache had of them, and of outputs. Charged as sequences end: a
  // caller that has overdrawn waits.
  std::optional<int64_t> tokens_per_minute;
  Priority max_priority = Priority::kNormal;
  bool admin = false;  // may call AdminService

  bool operator==(const CallerLimits&) const = default;
};

using Sha256 = std::array<unsigned char, 32>;

struct ApiKey {
  std::string name;
  Sha256 hash{};
  CallerLimits limits;
};

Sha256 HashOf(std::string_view text);

// A new key, "photon_" and 64 hexadecimal digits.
std::string NewApiKey();

// The line of the file for `key`.
std::string ApiKeyLine(const ApiKey& key);

// kInvalidArgument: every problem, each on a line of its own: "line 3: sha256: expected 64
// hexadecimal digits".
absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(std::string_view text);

// Of letters, digits and "._-@", 1 to 64: fit for logs.
bool IsCallerName(std::string_view name);

std::optional<Priority> ParsePriority(std::string_view name);  // "low", "normal", "high"
std::string_view PriorityName(Priority priority);

}  // namespace photon
