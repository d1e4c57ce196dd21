#include "server/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "server/server.h"
#include "tests/server/test_model.h"

namespace photon {
namespace {

using ::testing::HasSubstr;

TEST(ServerOptions, NamesEveryProblem) {
  ServerOptions options;
  EXPECT_TRUE(options.Validate().empty());
  options.listen = "0.0.0.0:50051";
  options.drain_timeout = std::chrono::milliseconds(-1);
  options.max_streams_per_connection = 0;
  EXPECT_EQ(options.Validate().size(), 3u);
  EXPECT_THAT(options.Validate()[0], HasSubstr("needs --insecure"));
  options.insecure = true;
  EXPECT_EQ(options.Validate().size(), 2u);
  options.requests.max_prompts = 0;
  options.documents.max_ttl = std::chrono::seconds(0);
  EXPECT_EQ(options.Validate().size(), 4u);
  for (const char* address : {"", ":1", "localhost", "localhost:", "localhost:http"}) {
    ServerOptions bad;
    bad.listen = address;
    EXPECT_EQ(bad.Validate().size(), 1u) << address;
  }
  for (const char* address : {"localhost:0", "[::1]:1", "127.0.0.2:1", "unix:/tmp/photon.sock"}) {
    ServerOptions good;
    good.listen = address;
    EXPECT_TRUE(good.Validate().empty()) << address;
  }
}

TEST(ServerStart, RefusesAPortThatIsTaken) {
  FakeEngine engine(TestShape());
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.http.listen = "";
  auto first = Server::Start(options, {}, {TestModel(), {Borrowed<Engine>(&engine)}});
  ASSERT_TRUE(first.ok());
  options.listen = (*first)->address();
  FakeEngine other(TestShape());
  const auto second = Server::Start(options, {}, {TestModel(), {Borrowed<Engine>(&other)}});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("cannot bind"));
}

}  // namespace
}  // namespace photon
