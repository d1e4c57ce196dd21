#include "server/auth/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/escaping.h"

namespace photon {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const char kHash[] = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";  // hello

std::string Line(const std::string& name, const std::string& more = "") {
  return R"({"name": ")" + name + R"(", "sha256": ")" + kHash + "\"" + more + "}\n";
}

TEST(ApiKeys, HashIsThatOfTheStandard) {
  const Sha256 hash = HashOf("hello");
  EXPECT_EQ(absl::BytesToHexString({reinterpret_cast<const char*>(hash.data()), hash.size()}),
            kHash);
}

TEST(ApiKeys, NewKeysDifferAndAreLong) {
  const std::string key = NewApiKey();
  EXPECT_THAT(key, ::testing::MatchesRegex("photon_[0-9a-f]+"));
  EXPECT_EQ(key.size(), 7 + 64u);
  EXPECT_NE(key, NewApiKey());
}

TEST(ApiKeys, WhatIsWrittenIsRead) {
  ApiKey key;
  key.name = "alice@example";
  key.hash = HashOf(NewApiKey());
  key.limits = {.requests_per_minute = 60,
                .max_concurrent_requests = 3,
                .tokens_per_minute = 100'000,
                .max_priority = Priority::kHigh,
                .admin = true};
  const auto keys = ParseApiKeys(ApiKeyLine(key));
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->size(), 1u);
  EXPECT_EQ(keys->front().name, key.name);
  EXPECT_EQ(keys->front().hash, key.hash);
  EXPECT_EQ(keys->front().limits, key.limits);
}

TEST(ApiKeys, LimitsLeftOutAreUnlimitedAndRightsAreNot) {
  const auto keys = ParseApiKeys("# the one key\n\n" + Line("bob"));
  ASSERT_TRUE(keys.ok()) << keys.status();
  const CallerLimits& limits = keys->front().limits;
  EXPECT_FALSE(limits.requests_per_minute || limits.max_concurrent_requests ||
               limits.tokens_per_minute);
  EXPECT_EQ(limits.max_priority, Priority::kNormal);
  EXPECT_FALSE(limits.admin);
}

TEST(ApiKeys, AFileWithoutKeysLetsNobodyIn) {
  const auto keys = ParseApiKeys("# none\n");
  ASSERT_TRUE(keys.ok());
  EXPECT_TRUE(keys->empty());
}

TEST(ApiKeys, EveryProblemIsNamedWithItsLine) {
  const auto keys = ParseApiKeys(
      "nonsense\n"
      "[1]\n" +
      Line("white space") + Line("b", R"(, "requests_per_minute": 0)") +
      Line("c", R"(, "tokens_per_minute": "many")") + Line("d", R"(, "max_priority": "urgent")") +
      Line("e", R"(, "admin": 1)") + Line("f", R"(, "requests_per_hour": 1)") +
      R"({"name": "g", "sha256": "abc"})"
      "\n{}\n" +
      Line("h", R"(, "admin": true, "admin": false)"));
  ASSERT_EQ(keys.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string problems(keys.status().message());
  for (const char* problem :
       {"line 1: ", "line 2: expected a JSON object",
        "line 3: name: ", "line 4: requests_per_minute: expected a whole number of 1 or more",
        "line 5: tokens_per_minute: ", "line 6: max_priority: ", "line 7: admin: ",
        "line 8: requests_per_hour: unknown field", "line 9: sha256: expected 64",
        "line 10: name: is missing", "line 10: sha256: is missing", "line 11: duplicate key"}) {
    EXPECT_THAT(problems, HasSubstr(problem));
  }
}

TEST(ApiKeys, AHashStandsOnceAndANameHasOneSetOfLimits) {
  EXPECT_THAT(std::string(ParseApiKeys(Line("a") + Line("b")).status().message()),
              HasSubstr("line 2: sha256: stands there twice"));
  const std::string other_key =
      R"({"name": "a", "sha256": ")" + std::string(64, '0') + R"(", "requests_per_minute": 1})";
  EXPECT_THAT(std::string(ParseApiKeys(Line("a") + other_key).status().message()),
              HasSubstr("line 2: a has other limits on a line above"));
}

TEST(ApiKeys, ProblemsDoNotRepeatHashes) {
  const auto keys = ParseApiKeys(Line("a") + Line("b"));
  EXPECT_THAT(std::string(keys.status().message()), ::testing::Not(HasSubstr(kHash)));
}

}  // namespace
}  // namespace photon
