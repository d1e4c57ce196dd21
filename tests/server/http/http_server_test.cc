// The HTTP server over real sockets: framing, limits, and connections that come and go.
#include "server/http/http_server.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/server/http/socket_client.h"

namespace photon {
namespace {

using std::chrono::milliseconds;

// An answer that its test writes.
class ScriptedAnswer : public HttpAnswer {
 public:
  explicit ScriptedAnswer(HttpWaker waker) : waker_(std::move(waker)) {}

  void Say(HttpPart part) {
    {
      std::lock_guard lock(mutex_);
      parts_.push_back(std::move(part));
    }
    waker_();
  }

  // Whether it was written completely.
  bool AwaitClosed() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_.has_value(); });
    return *closed_;
  }

  HttpPart Next() override {
    std::lock_guard lock(mutex_);
    if (parts_.empty()) return {};
    HttpPart part = std::move(parts_.front());
    parts_.pop_front();
    ++num_taken_;
    return part;
  }

  void OnClosed(bool complete) override {
    std::lock_guard lock(mutex_);
    closed_ = complete;
    changed_.notify_all();
  }

  int num_taken() {
    std::lock_guard lock(mutex_);
    return num_taken_;
  }

 private:
  const HttpWaker waker_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<HttpPart> parts_;
  std::optional<bool> closed_;
  int num_taken_ = 0;
};

class HttpServerTest : public ::testing::Test {
 protected:
  // Hundreds of connections take two descriptors each.
  static void SetUpTestSuite() {
    rlimit limit = {};
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  }

  // Serves /echo, which answers with method, path and body at once, and /script.
  void Start() {
    options_.listen = "127.0.0.1:0";
    auto server = HttpServer::Start(options_, [this](HttpRequest request, HttpWaker waker) {
      return Handle(std::move(request), std::move(waker));
    });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  std::shared_ptr<HttpAnswer> Handle(HttpRequest request, HttpWaker waker) {
    if (request.path == "/script") {
      auto answer = std::make_shared<ScriptedAnswer>(std::move(waker));
      std::lock_guard lock(mutex_);
      scripted_.push_back(answer);
      changed_.notify_all();
      return answer;
    }
    HttpResponse response;
    response.body = absl::StrCat(request.method, " ", request.path, " ", request.body);
    return AnswerAtOnce(std::move(response));
  }

  std::shared_ptr<ScriptedAnswer> NextScripted() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !scripted_.empty(); });
    auto answer = scripted_.front();
    scripted_.pop_front();
    return answer;
  }

  template <typename Condition>
  static bool Eventually(const Condition& condition) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > give_up) return false;
      std::this_thread::yield();
    }
    return true;
  }

  HttpOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<ScriptedAnswer>> scripted_;
  std::unique_ptr<HttpServer> server_;
};

constexpr char kGetEcho[] = "GET /echo HTTP/1.1\r\nHost: a\r\n\r\n";
constexpr char kGetScript[] = "GET /script HTTP/1.1\r\nHost: a\r\n\r\n";

TEST_F(HttpServerTest, AnswersSeveralRequestsOfAConnection) {
  Start();
  SocketClient client(server_->address());
  for (int i = 0; i < 3; ++i) {
    client.Send(kGetEcho);
    const auto response = client.ReadResponse();
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, "GET /echo ");
    EXPECT_TRUE(absl::StrContains(response.head, "connection: keep-alive"));
  }
}

TEST_F(HttpServerTest, ReadsBodiesInAnyPieces) {
  Start();
  const std::string request =
      "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world"
      "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
      "6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n";
  for (size_t piece = 1; piece < request.size(); piece = piece * 2 + 1) {
    SocketClient client(server_->address());
    for (size_t at = 0; at < request.size(); at += piece) {
      ASSERT_TRUE(client.Send(request.substr(at, piece)));
    }
    EXPECT_EQ(client.ReadResponse().body, "POST /echo hello world");
    EXPECT_EQ(client.ReadResponse().body, "POST /echo hello world");
  }
}

TEST_F(HttpServerTest, AnswersRequestsThatWereSentAheadInOrder) {
  Start();
  SocketClient client(server_->address());
  std::string requests;
  for (int i = 0; i < 1000; ++i) {
    absl::StrAppend(&requests, "GET /", i, " HTTP/1.1\r\nHost: a\r\n\r\n");
  }
  std::thread sender([&] { client.Send(requests); });
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(client.ReadResponse().body, absl::StrCat("GET /", i, " "));
  }
  sender.join();
}

TEST_F(HttpServerTest, ClosesWhenAsked) {
  Start();
  SocketClient client(server_->address());
  client.Send("GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  EXPECT_TRUE(absl::StrContains(client.ReadResponse().head, "connection: close"));
  EXPECT_EQ(client.ReadAll(), "");
}

TEST_F(HttpServerTest, AnswersHttp10WithoutChunks) {
  Start();
  SocketClient client(server_->address());
  client.Send("GET /script HTTP/1.0\r\n\r\n");
  const auto answer = NextScripted();
  answer->Say({.head = HttpHead{}, .body = "one "});
  answer->Say({.body = "two"});
  answer->Say({.end = true});
  const auto response = client.ReadResponse();
  EXPECT_EQ(response.body, "one two");
  EXPECT_FALSE(absl::StrContains(response.head, "chunked"));
}

TEST_F(HttpServerTest, SendsHeadsWithoutBodies) {
  Start();
  SocketClient client(server_->address());
  client.Send("HEAD /echo HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_TRUE(
      absl::StrContains(client.ReadResponse(/*has_body=*/false).head, "content-length: 11"));
  client.Send(kGetEcho);
  EXPECT_EQ(client.ReadResponse().body, "GET /echo ");
}

TEST_F(HttpServerTest, InvitesBodiesThatWait) {
  Start();
  SocketClient client(server_->address());
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("hi");
  EXPECT_EQ(client.ReadResponse().body, "POST /echo hi");
}

TEST_F(HttpServerTest, StreamsPartsAsTheyCome) {
  Start();
  SocketClient client(server_->address());
  client.Send(kGetScript);
  const auto answer = NextScripted();
  answer->Say({.head = HttpHead{}, .body = "first"});
  EXPECT_TRUE(client.ReadUntil("\r\n\r\n").has_value());
  EXPECT_EQ(client.ReadChunk(), "first");
  answer->Say({.body = "second"});
  EXPECT_EQ(client.ReadChunk(), "second");
  answer->Say({.end = true});
  EXPECT_EQ(client.ReadChunk(), "");
  EXPECT_TRUE(answer->AwaitClosed());
  client.Send(kGetEcho);
  EXPECT_EQ(client.ReadResponse().body, "GET /echo ");
}

TEST_F(HttpServerTest, ASlowReaderIsNotAheadOfItsParts) {
  Start();
  SocketClient client(server_->address(), /*receive_buffer=*/4096);
  client.Send(kGetScript);
  const auto answer = NextScripted();
  answer->Say({.head = HttpHead{}});
  const std::string part(1 << 16, 'x');
  constexpr int kParts = 256;
  for (int i = 0; i < kParts; ++i) answer->Say({.body = part});
  answer->Say({.end = true});
  // 16 MiB do not fit what the kernel holds for a connection: the answer is not asked for them.
  SocketClient other(server_->address());
  other.Send(kGetEcho);
  EXPECT_EQ(other.ReadResponse().status, 200);
  EXPECT_LT(answer->num_taken(), kParts);
  EXPECT_EQ(client.ReadResponse().body.size(), kParts * part.size());
  EXPECT_TRUE(answer->AwaitClosed());
}

TEST_F(HttpServerTest, NoticesAtOnceThatAClientLeft) {
  Start();
  for (const bool reset : {false, true}) {
    SocketClient client(server_->address());
    client.Send(kGetScript);
    const auto answer = NextScripted();
    client.Close(reset);
    EXPECT_FALSE(answer->AwaitClosed());
  }
  EXPECT_TRUE(Eventually([&] { return server_->num_connections() == 0; }));
}

TEST_F(HttpServerTest, WakersOutliveTheirConnections) {
  Start();
  SocketClient client(server_->address());
  client.Send(kGetScript);
  const auto answer = NextScripted();
  client.Close();
  EXPECT_FALSE(answer->AwaitClosed());
  answer->Say({.body = "to nobody"});
  EXPECT_TRUE(Eventually([&] { return server_->num_connections() == 0; }));
  answer->Say({.body = "to nobody"});
}

TEST_F(HttpServerTest, RefusesWhatIsNotARequest) {
  Start();
  const struct {
    std::string bytes;
    int status;
  } cases[] = {
      {"hello\r\n\r\n", 400},
      {"GET /echo HTTP/3.7\r\n\r\n", 505},
      {"GET /echo HTTP/1.1\r\n\r\n", 400},  // no Host
      {"GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
      {"GET echo HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
      {std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS to a plaintext port", 36),
       400},
  };
  for (const auto& c : cases) {
    SocketClient client(server_->address());
    client.Send(c.bytes);
    EXPECT_EQ(client.ReadResponse().status, c.status) << c.bytes;
    EXPECT_EQ(client.ReadAll(), "") << c.bytes;
  }
}

TEST_F(HttpServerTest, RefusesLongHeaders) {
  Start();
  const std::string begin = "GET /echo HTTP/1.1\r\nHost: a\r\n";
  for (const std::string& giant :
       {absl::StrCat(begin, "X: ", std::string(1 << 20, 'x'), "\r\n\r\n"),
        absl::StrCat("GET /", std::string(1 << 20, 'x'), " HTTP/1.1\r\n\r\n"),
        absl::StrCat(begin, std::string(9000, ' '), "\r\n\r\n")}) {
    SocketClient client(server_->address());
    std::thread sender([&] { client.Send(giant); });
    EXPECT_GE(client.ReadResponse().status, 400);
    sender.join();
  }
  std::string many = begin;
  for (int i = 0; i < 10'000; ++i) absl::StrAppend(&many, "X-", i, ": y\r\n");
  SocketClient client(server_->address());
  std::thread sender([&] { client.Send(many); });
  EXPECT_EQ(client.ReadResponse().status, 431);
  sender.join();
}

TEST_F(HttpServerTest, TakesHeadersUpToTheLimit) {
  Start();
  SocketClient client(server_->address());
  client.Send(
      absl::StrCat("GET /echo HTTP/1.1\r\nHost: a\r\nX: ", std::string(8000, 'x'), "\r\n\r\n"));
  EXPECT_EQ(client.ReadResponse().status, 200);
}

TEST_F(HttpServerTest, RefusesLongBodiesBeforeTheyCome) {
  options_.max_body_bytes = 2000;
  Start();
  SocketClient client(server_->address());
  client.Send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2001\r\n\r\n");
  EXPECT_EQ(client.ReadResponse().status, 413);

  SocketClient chunked(server_->address());
  std::string request = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 100; ++i) absl::StrAppend(&request, "64\r\n", std::string(100, 'x'), "\r\n");
  chunked.Send(request);
  EXPECT_EQ(chunked.ReadResponse().status, 413);
}

TEST_F(HttpServerTest, SlowHeadersAndBodiesTimeOut) {
  options_.header_timeout = milliseconds(100);
  options_.body_timeout = milliseconds(100);
  Start();
  SocketClient headers(server_->address());
  headers.Send("GET /echo HTTP/1.1\r\nHost:");
  EXPECT_EQ(headers.ReadResponse().status, 408);

  SocketClient body(server_->address());
  body.Send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
  EXPECT_EQ(body.ReadResponse().status, 408);

  SocketClient silent(server_->address());
  EXPECT_EQ(silent.ReadAll(), "");
}

TEST_F(HttpServerTest, HeadersThatDripDoNotMoveTheirDeadline) {
  options_.header_timeout = milliseconds(200);
  Start();
  SocketClient client(server_->address());
  client.Send("GET /echo HTTP/1.1\r\nHost: a\r\n");
  // One byte now and then, for as long as the server takes them.
  const auto begin = std::chrono::steady_clock::now();
  std::thread reader([&] { EXPECT_EQ(client.ReadResponse().status, 408); });
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable never;
  while (client.Send("x")) {
    ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
    never.wait_for(lock, milliseconds(20));
  }
  reader.join();
}

TEST_F(HttpServerTest, IdleConnectionsAreClosed) {
  options_.idle_timeout = milliseconds(100);
  Start();
  SocketClient client(server_->address());
  client.Send(kGetEcho);
  EXPECT_EQ(client.ReadResponse().status, 200);
  EXPECT_EQ(client.ReadAll(), "");
}

TEST_F(HttpServerTest, AClientThatTakesNothingLosesItsConnection) {
  options_.write_timeout = milliseconds(100);
  Start();
  SocketClient client(server_->address(), /*receive_buffer=*/4096);
  client.Send(kGetScript);
  const auto answer = NextScripted();
  answer->Say({.head = HttpHead{}, .body = std::string(16 << 20, 'x')});
  EXPECT_FALSE(answer->AwaitClosed());
}

TEST_F(HttpServerTest, AnswersTakeTheirTime) {
  options_.header_timeout = options_.body_timeout = options_.idle_timeout = milliseconds(50);
  options_.write_timeout = milliseconds(50);
  Start();
  SocketClient client(server_->address());
  client.Send(kGetScript);
  const auto answer = NextScripted();
  // Another connection sees all of these pass.
  SocketClient silent(server_->address());
  EXPECT_EQ(silent.ReadAll(), "");
  SocketClient silent_too(server_->address());
  EXPECT_EQ(silent_too.ReadAll(), "");
  answer->Say({.head = HttpHead{}, .body = "late", .end = true});
  EXPECT_EQ(client.ReadResponse().body, "late");
}

TEST_F(HttpServerTest, TurnsAwayMoreConnectionsThanAllowed) {
  options_.max_connections = 4;
  Start();
  std::deque<SocketClient> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back(server_->address());
    clients.back().Send(kGetEcho);
    EXPECT_EQ(clients.back().ReadResponse().status, 200);
  }
  SocketClient extra(server_->address());
  const auto refused = extra.ReadResponse();
  EXPECT_EQ(refused.status, 503);
  EXPECT_TRUE(absl::StrContains(refused.head, "retry-after"));
  clients.clear();
  EXPECT_TRUE(Eventually([&] {
    SocketClient client(server_->address());
    client.Send(kGetEcho);
    return client.ReadResponse().status == 200;
  }));
}

TEST_F(HttpServerTest, ServesAfterTenThousandConnects) {
  Start();
  for (int i = 0; i < 10'000; ++i) {
    SocketClient client(server_->address());
    ASSERT_TRUE(client.connected()) << i;
    // Some leave half of a request behind, some a reset; resets also spare the ports.
    if (i % 3 == 0) client.Send("GET /echo HT");
    client.Close(/*reset=*/true);
  }
  SocketClient client(server_->address());
  client.Send(kGetEcho);
  EXPECT_EQ(client.ReadResponse().status, 200);
  client.Close();
  EXPECT_TRUE(Eventually([&] { return server_->num_connections() == 0; }));
}

TEST_F(HttpServerTest, FiveHundredStreamsFlowSideBySide) {
  Start();
  constexpr int kStreams = 500;
  std::deque<SocketClient> clients;
  std::vector<std::shared_ptr<ScriptedAnswer>> answers;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back(server_->address());
    clients.back().Send(kGetScript);
    answers.push_back(NextScripted());
    answers.back()->Say({.head = HttpHead{}});
  }
  std::thread writer([&] {
    for (int round = 0; round < 20; ++round) {
      for (int i = 0; i < kStreams; ++i)
        answers[i]->Say({.body = absl::StrCat(i, ":", round, " ")});
    }
    for (const auto& answer : answers) answer->Say({.end = true});
  });
  for (int i = 0; i < kStreams; ++i) {
    std::string expected;
    for (int round = 0; round < 20; ++round) absl::StrAppend(&expected, i, ":", round, " ");
    EXPECT_EQ(clients[i].ReadResponse().body, expected);
  }
  writer.join();
}

TEST_F(HttpServerTest, DrainClosesConnectionsAfterTheirAnswers) {
  Start();
  SocketClient idle(server_->address());
  idle.Send(kGetEcho);
  EXPECT_EQ(idle.ReadResponse().status, 200);
  SocketClient busy(server_->address());
  busy.Send(kGetScript);
  const auto answer = NextScripted();
  server_->Drain();
  EXPECT_EQ(idle.ReadAll(), "");
  answer->Say({.head = HttpHead{}, .body = "done", .end = true});
  const auto response = busy.ReadResponse();
  EXPECT_EQ(response.body, "done");
  EXPECT_TRUE(absl::StrContains(response.head, "connection: close"));
  // Probes are still answered.
  SocketClient probe(server_->address());
  probe.Send(kGetEcho);
  EXPECT_EQ(probe.ReadResponse().status, 200);
}

TEST_F(HttpServerTest, StopLetsAnswersEndWithinTheGrace) {
  Start();
  SocketClient ends(server_->address());
  ends.Send(kGetScript);
  const auto ending = NextScripted();
  std::thread stopper([&] { server_->Stop(std::chrono::seconds(30)); });
  ending->Say({.head = HttpHead{}, .body = "done", .end = true});
  EXPECT_EQ(ends.ReadResponse().body, "done");
  ends.Close();
  stopper.join();
}

TEST_F(HttpServerTest, StopClosesWhatOutlastsTheGrace) {
  Start();
  SocketClient lasts(server_->address());
  lasts.Send(kGetScript);
  const auto lasting = NextScripted();
  server_->Stop(milliseconds(0));
  EXPECT_FALSE(lasting->AwaitClosed());
  EXPECT_EQ(lasts.ReadAll(), "");
}

TEST_F(HttpServerTest, AnAddressInUseIsAnError) {
  Start();
  HttpOptions same = options_;
  same.listen = server_->address();
  EXPECT_TRUE(absl::IsUnavailable(HttpServer::Start(same, nullptr).status()));
  same.listen = "nonsense";
  EXPECT_TRUE(absl::IsInvalidArgument(HttpServer::Start(same, nullptr).status()));
}

TEST(DecodePath, DecodesEscapesAndDropsTheQuery) {
  EXPECT_EQ(DecodePath("/v1/models/a%2Fb?x=%zz"), "/v1/models/a/b");
  EXPECT_EQ(DecodePath("/a%2"), std::nullopt);
  EXPECT_EQ(DecodePath("/a%00"), std::nullopt);
}

}  // namespace
}  // namespace photon
