#include "server/auth/api_keys.h"

#include <openssl/sha.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/strict_json.h"
#include "server/random.h"

namespace photon {
namespace {

constexpr int kKeyBytes = 32;
constexpr size_t kMaxNameLength = 64;
constexpr int64_t kMaxLimit = 1'000'000'000'000;
constexpr JsonLimits kLineLimits = {.max_bytes = 4096, .max_values = 64, .max_depth = 1};

constexpr std::array<std::string_view, kNumPriorities> kPriorityNames = {"low", "normal", "high"};

std::optional<Sha256> ParseHash(const std::string& text) {
  Sha256 hash{};
  if (text.size() != 2 * hash.size()) return std::nullopt;
  if (!std::all_of(text.begin(), text.end(), absl::ascii_isxdigit)) return std::nullopt;
  const std::string bytes = absl::HexStringToBytes(text);
  std::memcpy(hash.data(), bytes.data(), hash.size());
  return hash;
}

// Reads the fields of one line; what is wrong with them goes to `problems`.
class LineReader {
 public:
  LineReader(int line, std::vector<std::string>* problems) : line_(line), problems_(problems) {}

  ApiKey Read(const nlohmann::json& object) {
    ApiKey key;
    bool has_name = false;
    bool has_hash = false;
    for (const auto& [field, value] : object.items()) {
      if (field == "name") {
        has_name = true;
        if (value.is_string()) key.name = value.get<std::string>();
        if (!IsCallerName(key.name)) {
          Problem(field, "expected 1 to 64 letters, digits or any of ._-@");
        }
      } else if (field == "sha256") {
        has_hash = true;
        const auto hash = value.is_string() ? ParseHash(value.get<std::string>()) : std::nullopt;
        if (hash.has_value()) key.hash = *hash;
        if (!hash.has_value()) Problem(field, "expected 64 hexadecimal digits");
      } else if (field == "requests_per_minute") {
        key.limits.requests_per_minute = Limit(field, value);
      } else if (field == "max_concurrent_requests") {
        key.limits.max_concurrent_requests = Limit(field, value);
      } else if (field == "tokens_per_minute") {
        key.limits.tokens_per_minute = Limit(field, value);
      } else if (field == "max_priority") {
        const auto priority =
            value.is_string() ? ParsePriority(value.get<std::string>()) : std::nullopt;
        if (priority.has_value()) key.limits.max_priority = *priority;
        if (!priority.has_value()) Problem(field, "expected \"low\", \"normal\" or \"high\"");
      } else if (field == "admin") {
        if (value.is_boolean()) key.limits.admin = value.get<bool>();
        if (!value.is_boolean()) Problem(field, "expected true or false");
      } else {
        Problem(absl::CHexEscape(field), "unknown field");
      }
    }
    if (!has_name) Problem("name", "is missing");
    if (!has_hash) Problem("sha256", "is missing");
    return key;
  }

 private:
  void Problem(const std::string& field, const char* problem) {
    problems_->push_back(absl::StrCat("line ", line_, ": ", field, ": ", problem));
  }

  std::optional<int64_t> Limit(const std::string& field, const nlohmann::json& value) {
    if (value.is_number_unsigned()) {
      const auto number = value.get<uint64_t>();
      if (number >= 1 && number <= static_cast<uint64_t>(kMaxLimit)) {
        return static_cast<int64_t>(number);
      }
    }
    Problem(field, "expected a whole number of 1 or more");
    return std::nullopt;
  }

  const int line_;
  std::vector<std::string>* const problems_;
};

}  // namespace

Sha256 HashOf(std::string_view text) {
  Sha256 hash;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), hash.data());
  return hash;
}

std::string NewApiKey() {
  return absl::StrCat("photon_", RandomHex(kKeyBytes));
}

std::string ApiKeyLine(const ApiKey& key) {
  nlohmann::ordered_json line;
  line["name"] = key.name;
  line["sha256"] =
      absl::BytesToHexString({reinterpret_cast<const char*>(key.hash.data()), key.hash.size()});
  const CallerLimits& limits = key.limits;
  if (limits.requests_per_minute) line["requests_per_minute"] = *limits.requests_per_minute;
  if (limits.max_concurrent_requests) {
    line["max_concurrent_requests"] = *limits.max_concurrent_requests;
  }
  if (limits.tokens_per_minute) line["tokens_per_minute"] = *limits.tokens_per_minute;
  if (limits.max_priority != CallerLimits().max_priority) {
    line["max_priority"] = std::string(PriorityName(limits.max_priority));
  }
  if (limits.admin) line["admin"] = true;
  return line.dump();
}

absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(std::string_view text) {
  std::vector<ApiKey> keys;
  std::vector<std::string> problems;
  std::set<Sha256> hashes;
  std::map<std::string, CallerLimits> callers;
  int line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line(
        absl::StripAsciiWhitespace(absl::string_view(text.data() + begin, end - begin)));
    begin = end + 1;
    ++line_number;
    if (line.empty() || line.front() == '#') continue;
    const auto object = ParseStrictJson(line, kLineLimits);
    if (!object.ok() || !object->is_object()) {
      problems.push_back(absl::StrCat(
          "line ", line_number, ": ",
          object.ok() ? "expected a JSON object" : std::string(object.status().message())));
      continue;
    }
    const size_t problems_before = problems.size();
    ApiKey key = LineReader(line_number, &problems).Read(*object);
    if (problems.size() > problems_before) continue;
    if (!hashes.insert(key.hash).second) {
      problems.push_back(absl::StrCat("line ", line_number, ": sha256: stands there twice"));
    }
    if (callers.emplace(key.name, key.limits).first->second != key.limits) {
      problems.push_back(
          absl::StrCat("line ", line_number, ": ", key.name, " has other limits on a line above"));
    }
    keys.push_back(std::move(key));
  }
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
  return keys;
}

bool IsCallerName(std::string_view name) {
  const auto may_stand = [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-' || c == '@';
  };
  return !name.empty() && name.size() <= kMaxNameLength &&
         std::all_of(name.begin(), name.end(), may_stand);
}

std::optional<Priority> ParsePriority(std::string_view name) {
  const auto found = std::find(kPriorityNames.begin(), kPriorityNames.end(), name);
  if (found == kPriorityNames.end()) return std::nullopt;
  return static_cast<Priority>(found - kPriorityNames.begin());
}

std::string_view PriorityName(Priority priority) {
  return kPriorityNames[static_cast<size_t>(priority)];
}

}  // namespace photon
