#include "server/auth/authenticator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/scheduler/fake_clock.h"

namespace photon {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

ApiKey Key(const std::string& name, const std::string& token, const CallerLimits& limits = {}) {
  return {.name = name, .hash = HashOf(token), .limits = limits};
}

class AuthenticatorTest : public ::testing::Test {
 protected:
  // How many of `attempts` requests, each over before the next, are admitted.
  int Admitted(Authenticator& authenticator, int attempts) {
    int admitted = 0;
    for (int i = 0; i < attempts; ++i) admitted += authenticator.Admit("a").ok();
    return admitted;
  }

  FakeClock clock_;
};

TEST_F(AuthenticatorTest, AKeyLetsInUnderItsName) {
  Authenticator authenticator({Key("alice", "a"), Key("bob", "b")}, &clock_);
  const auto alice = authenticator.Admit("a");
  const auto bob = authenticator.Admit("b");
  ASSERT_TRUE(alice.ok() && bob.ok());
  EXPECT_EQ(alice->name(), "alice");
  EXPECT_NE(alice->tenant(), bob->tenant());
  EXPECT_EQ(alice->tenant(), authenticator.Admit("a")->tenant());
}

TEST_F(AuthenticatorTest, NoKeyAndAnUnknownKeyAreToldTheSame) {
  Authenticator authenticator({Key("alice", "a")}, &clock_);
  const absl::Status none = authenticator.Admit(std::nullopt).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kUnauthenticated);
  for (const char* token : {"", "b", "A", "a ", "alice"}) {
    EXPECT_EQ(authenticator.Admit(token).status(), none) << token;
  }
  EXPECT_EQ(authenticator.num_refused()[static_cast<size_t>(Refusal::kUnknownKey)], 6);
}

TEST_F(AuthenticatorTest, WithoutKeysNobodyIsLetIn) {
  Authenticator authenticator(std::vector<ApiKey>(), &clock_);
  EXPECT_TRUE(authenticator.needs_key());
  EXPECT_EQ(authenticator.Admit("a").status().code(), absl::StatusCode::kUnauthenticated);
}

TEST_F(AuthenticatorTest, OpenAccessLetsEverybodyInAndTokensAreTenants) {
  Authenticator authenticator(Authenticator::OpenAccess{}, &clock_);
  EXPECT_FALSE(authenticator.needs_key());
  const auto nobody = authenticator.Admit(std::nullopt);
  const auto a = authenticator.Admit("a");
  const auto b = authenticator.Admit("b");
  ASSERT_TRUE(nobody.ok() && a.ok() && b.ok());
  EXPECT_EQ(nobody->tenant(), TenantId{});
  EXPECT_NE(a->tenant(), TenantId{});
  EXPECT_NE(a->tenant(), b->tenant());
  EXPECT_TRUE(a->CheckPriority(Priority::kHigh).ok());
  EXPECT_EQ(a->CheckAdmin().code(), absl::StatusCode::kPermissionDenied);
  Authenticator admins(Authenticator::OpenAccess{.admin = true}, &clock_);
  EXPECT_TRUE(admins.Admit(std::nullopt)->CheckAdmin().ok());
}

TEST_F(AuthenticatorTest, RequestsComeBackEvenlyOverAMinute) {
  Authenticator authenticator({Key("alice", "a", {.requests_per_minute = 60})}, &clock_);
  EXPECT_EQ(Admitted(authenticator, 100), 60);
  const absl::Status refused = authenticator.Admit("a").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(RetryDelay(refused).has_value());
  EXPECT_EQ(*RetryDelay(refused), seconds(1));
  clock_.Advance(milliseconds(999));
  EXPECT_EQ(Admitted(authenticator, 1), 0);
  clock_.Advance(milliseconds(1));
  EXPECT_EQ(Admitted(authenticator, 2), 1);
  clock_.Advance(seconds(3600));
  EXPECT_EQ(Admitted(authenticator, 100), 60);
}

TEST_F(AuthenticatorTest, RefusedRequestsCostNothing) {
  Authenticator authenticator({Key("alice", "a", {.requests_per_minute = 1})}, &clock_);
  EXPECT_EQ(Admitted(authenticator, 1000), 1);
  clock_.Advance(seconds(60));
  EXPECT_EQ(Admitted(authenticator, 1), 1);
}

TEST_F(AuthenticatorTest, ConcurrentRequestsAreCountedWhileTheyLive) {
  Authenticator authenticator({Key("alice", "a", {.max_concurrent_requests = 2}), Key("bob", "b")},
                              &clock_);
  std::optional<Caller> first = *authenticator.Admit("a");
  const std::optional<Caller> second = *authenticator.Admit("a");
  const absl::Status refused = authenticator.Admit("a").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryDelay(refused).has_value());
  EXPECT_TRUE(authenticator.Admit("b").ok());
  const Caller moved = *std::move(first);
  EXPECT_FALSE(authenticator.Admit("a").ok()) << "moving is not ending";
  first.reset();
  EXPECT_FALSE(authenticator.Admit("a").ok());
  {
    const Caller ends = *authenticator.Admit("b");
  }
  EXPECT_FALSE(authenticator.Admit("a").ok());
}

TEST_F(AuthenticatorTest, AnEndedRequestMakesRoom) {
  Authenticator authenticator({Key("alice", "a", {.max_concurrent_requests = 1})}, &clock_);
  EXPECT_EQ(Admitted(authenticator, 10), 10);
}

TEST_F(AuthenticatorTest, TokensAreChargedAfterTheFactAndOverdraftsAreWaitedOff) {
  Authenticator authenticator({Key("alice", "a", {.tokens_per_minute = 600})}, &clock_);
  {
    const auto caller = authenticator.Admit("a");
    ASSERT_TRUE(caller.ok());
    caller->Charge(1200);
  }
  const absl::Status refused = authenticator.Admit("a").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryDelay(refused).value(), milliseconds(60'100));  // 600 owed, and one to begin
  clock_.Advance(milliseconds(60'099));
  EXPECT_FALSE(authenticator.Admit("a").ok());
  clock_.Advance(milliseconds(1));
  EXPECT_TRUE(authenticator.Admit("a").ok());
  EXPECT_EQ(authenticator.num_refused()[static_cast<size_t>(Refusal::kTokenRate)], 2);
}

TEST_F(AuthenticatorTest, PrioritiesAboveTheKeysAreDenied) {
  Authenticator authenticator({Key("alice", "a"), Key("bob", "b", {.max_priority = Priority::kLow}),
                               Key("eve", "e", {.max_priority = Priority::kHigh})},
                              &clock_);
  EXPECT_TRUE(authenticator.Admit("a")->CheckPriority(Priority::kNormal).ok());
  EXPECT_EQ(authenticator.Admit("a")->CheckPriority(Priority::kHigh).code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(authenticator.Admit("b")->CheckPriority(Priority::kLow).ok());
  EXPECT_FALSE(authenticator.Admit("b")->CheckPriority(Priority::kNormal).ok());
  EXPECT_TRUE(authenticator.Admit("e")->CheckPriority(Priority::kHigh).ok());
}

TEST_F(AuthenticatorTest, AdministrationNeedsAKeyForIt) {
  Authenticator authenticator({Key("alice", "a"), Key("root", "r", {.admin = true})}, &clock_);
  EXPECT_EQ(authenticator.Admit("a")->CheckAdmin().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(authenticator.Admit("r")->CheckAdmin().ok());
}

TEST_F(AuthenticatorTest, NewKeysReplaceOldOnesAndCallersKeepWhatTheyUsed) {
  Authenticator authenticator({Key("alice", "a", {.requests_per_minute = 2}), Key("bob", "b")},
                              &clock_);
  const TenantId tenant = authenticator.Admit("a")->tenant();
  const auto running = authenticator.Admit("b");
  authenticator.SetKeys({Key("alice", "a", {.requests_per_minute = 2}),
                         Key("alice", "a2", {.requests_per_minute = 2})});
  EXPECT_FALSE(authenticator.Admit("b").ok());
  EXPECT_EQ(running->name(), "bob") << "what was admitted goes on";
  const auto again = authenticator.Admit("a2");
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->tenant(), tenant);
  EXPECT_FALSE(authenticator.Admit("a").ok()) << "two keys of one caller share its limits";
  authenticator.SetKeys({Key("alice", "a")});
  EXPECT_TRUE(authenticator.Admit("a").ok());
}

TEST_F(AuthenticatorTest, IsSafeToUseFromManyThreads) {
  const CallerLimits limits = {.max_concurrent_requests = 3, .tokens_per_minute = 1'000'000'000};
  const std::vector<ApiKey> keys = {Key("alice", "a", limits), Key("bob", "b")};
  Authenticator authenticator(keys, &clock_);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 2000; ++n) {
        auto caller = authenticator.Admit("a");
        if (caller.ok()) caller->Charge(1);
        if (n % 100 == 0) authenticator.SetKeys(keys);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<Caller> held;
  for (int i = 0; i < 3; ++i) held.push_back(*authenticator.Admit("a"));
  EXPECT_FALSE(authenticator.Admit("a").ok());
}

TEST(BearerToken, TakesTheSchemeInAnyCaseAndNoOther) {
  EXPECT_EQ(BearerToken("Bearer x"), "x");
  EXPECT_EQ(BearerToken("bEARER x y"), "x y");
  EXPECT_EQ(BearerToken("Bearer "), "");
  for (const char* value : {"", "x", "Bearer", "Basic x", " Bearer x"}) {
    EXPECT_EQ(BearerToken(value), std::nullopt) << value;
  }
}

}  // namespace
}  // namespace photon
