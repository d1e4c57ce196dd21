// The HTTP port of the real server over real sockets, with a fake engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <deque>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/server/http/socket_client.h"
#include "tests/server/server_fixture.h"

namespace photon {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

class CompletionsTest : public ServerTest {
 protected:
  static void SetUpTestSuite() {
    rlimit limit = {};
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  }

  SocketClient Connect(int receive_buffer = 0) {
    return SocketClient(server_->http_address(), receive_buffer);
  }

  // A POST of a completion; `members` are the JSON object's, but for the model.
  static std::string Post(const std::string& members, const std::string& headers = "") {
    const std::string body = R"({"model":"test","ignore_eos":true,"seed":1,)" + members + "}";
    return absl::StrCat("POST /v1/completions HTTP/1.1\r\nHost: a\r\ncontent-type: ",
                        "application/json\r\ncontent-length: ", body.size(), "\r\n", headers,
                        "\r\n", body);
  }

  SocketClient::Response Ask(const std::string& request) {
    SocketClient client = Connect();
    client.Send(request);
    return client.ReadResponse();
  }
  SocketClient::Response Get(const std::string& path, const std::string& headers = "") {
    return Ask(absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: a\r\n", headers, "\r\n"));
  }
  json Complete(const std::string& members) {
    const auto response = Ask(Post(members));
    EXPECT_EQ(response.status, 200) << response.body;
    return json::parse(response.body, nullptr, false);
  }

  // The data of the events in the body of a stream, but for the last one, which is [DONE].
  static std::vector<json> Events(const std::string& body) {
    std::vector<json> events;
    size_t at = 0;
    bool done = false;
    while (at < body.size()) {
      const size_t end = body.find("\n\n", at);
      EXPECT_NE(end, std::string::npos);
      if (end == std::string::npos) break;
      const std::string event = body.substr(at, end - at);
      at = end + 2;
      EXPECT_EQ(event.substr(0, 6), "data: ");
      EXPECT_FALSE(done) << "an event after the last one";
      done = event == "data: [DONE]";
      if (!done) events.push_back(json::parse(event.substr(6), nullptr, false));
    }
    EXPECT_TRUE(done) << body;
    return events;
  }

  // The texts of the choices of a stream.
  static std::map<int, std::string> Texts(const std::vector<json>& events) {
    std::map<int, std::string> texts;
    for (const json& event : events) {
      for (const json& choice : event["choices"]) {
        texts[choice["index"].get<int>()] += choice["text"].get<std::string>();
      }
    }
    return texts;
  }
};

TEST_F(CompletionsTest, AreWhatGenerateGives) {
  Start();
  const json completion = Complete(R"("prompt":"hello","max_tokens":30)");
  const Reply reply = Generate(Request(30, "hello"));
  EXPECT_EQ(completion["choices"][0]["text"], reply.text);
  EXPECT_EQ(completion["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(completion["object"], "text_completion");
  EXPECT_EQ(completion["model"], "test");
  EXPECT_EQ(completion["usage"]["prompt_tokens"], reply.result.usage().prompt_tokens());
  EXPECT_EQ(completion["usage"]["completion_tokens"], 30);
  EXPECT_EQ(completion["usage"]["total_tokens"], reply.result.usage().prompt_tokens() + 30);
}

TEST_F(CompletionsTest, StreamsSayWhatWholeOnesSay) {
  Start();
  const std::string members = R"("prompt":["one","two"],"max_tokens":40,"n":3)";
  const json whole = Complete(members);
  const auto response =
      Ask(Post(members + R"(,"stream":true,"stream_options":{"include_usage":true})"));
  EXPECT_THAT(response.head, HasSubstr("content-type: text/event-stream"));
  const std::vector<json> events = Events(response.body);
  const std::map<int, std::string> texts = Texts(events);
  ASSERT_EQ(whole["choices"].size(), 6u);
  ASSERT_EQ(texts.size(), 6u);
  for (const json& choice : whole["choices"]) {
    EXPECT_EQ(texts.at(choice["index"].get<int>()), choice["text"].get<std::string>());
  }
  EXPECT_EQ(events.back()["choices"].size(), 0u);
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
  EXPECT_EQ(events.back()["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
  EXPECT_TRUE(events.front()["usage"].is_null());
}

TEST_F(CompletionsTest, EndAtStopStringsAndSayWhy) {
  Start();
  MakeEngineSay("abcdef ");
  const json completion = Complete(R"("prompt":"","max_tokens":50,"stop":["ef"])");
  EXPECT_EQ(completion["choices"][0]["finish_reason"], "stop");
  EXPECT_THAT(completion["choices"][0]["text"].get<std::string>(), Not(HasSubstr("ef")));
}

TEST_F(CompletionsTest, LogprobsFollowTheText) {
  Start();
  MakeEngineSay("so naïve ");
  for (const std::string& stop : {std::string(), std::string(R"(,"stop":"ve")")}) {
    const std::string members = R"("prompt":"x","max_tokens":40,"logprobs":2)" + stop;
    const json completion = Complete(members);
    const json& choice = completion["choices"][0];
    const json& logprobs = choice["logprobs"];
    const size_t count = logprobs["tokens"].size();
    ASSERT_GT(count, 0u);
    EXPECT_EQ(logprobs["token_logprobs"].size(), count);
    EXPECT_EQ(logprobs["text_offset"].size(), count);
    EXPECT_EQ(logprobs["top_logprobs"].size(), count);
    int offset = 0;
    for (size_t i = 0; i < count; ++i) {
      EXPECT_GE(logprobs["text_offset"][i].get<int>(), offset);
      offset = logprobs["text_offset"][i];
      EXPECT_EQ(logprobs["token_logprobs"][i], -0.5);
      EXPECT_TRUE(logprobs["top_logprobs"][i].contains(logprobs["tokens"][i].get<std::string>()));
    }
    // Streamed, the pieces are the same in the same order.
    const auto response = Ask(Post(members + R"(,"stream":true)"));
    json tokens = json::array(), offsets = json::array();
    for (const json& event : Events(response.body)) {
      const json& piece = event["choices"][0]["logprobs"];
      if (piece.is_null()) continue;
      for (const json& token : piece["tokens"]) tokens.push_back(token);
      for (const json& at : piece["text_offset"]) offsets.push_back(at);
    }
    EXPECT_EQ(tokens, logprobs["tokens"]);
    EXPECT_EQ(offsets, logprobs["text_offset"]);
  }
}

TEST_F(CompletionsTest, EchoThePromptOncePerChoice) {
  Start();
  const std::string members = R"("prompt":"Hi","max_tokens":12,"n":2)";
  const json plain = Complete(members);
  const json echoed = Complete(members + R"(,"echo":true)");
  const auto streamed = Texts(Events(Ask(Post(members + R"(,"echo":true,"stream":true)")).body));
  for (int i = 0; i < 2; ++i) {
    const std::string expected = "Hi" + plain["choices"][i]["text"].get<std::string>();
    EXPECT_EQ(echoed["choices"][i]["text"], expected);
    EXPECT_EQ(streamed.at(i), expected);
  }
}

TEST_F(CompletionsTest, CountThePromptOfSeveralSamplesOnce) {
  Start();
  const std::string prompt(100, 'x');
  const json one = Complete(R"("prompt":")" + prompt + R"(","max_tokens":4)");
  const json three = Complete(R"("prompt":")" + prompt + R"(","max_tokens":4,"n":3)");
  EXPECT_EQ(three["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
  EXPECT_EQ(three["usage"]["completion_tokens"], 12);
  // The first request left it in the cache.
  EXPECT_GT(three["usage"]["prompt_tokens_details"]["cached_tokens"].get<int>(), 0);
}

TEST_F(CompletionsTest, EchoRequestIds) {
  Start();
  const auto named = Ask(Post(R"("prompt":"a")", "x-request-id: my-id-7\r\n"));
  EXPECT_THAT(named.head, HasSubstr("x-request-id: my-id-7\r\n"));
  EXPECT_THAT(Ask(Post(R"("prompt":"a","stream":true)", "x-request-id: s\r\n")).head,
              HasSubstr("x-request-id: s\r\n"));
  EXPECT_THAT(Get("/nowhere").head, HasSubstr("x-request-id: "));
}

TEST_F(CompletionsTest, RefuseInOneShape) {
  options_.http.max_body_bytes = 4096;
  Start();
  const auto error = [&](const SocketClient::Response& response) {
    const json body = json::parse(response.body, nullptr, false);
    EXPECT_TRUE(body.contains("error")) << response.body;
    EXPECT_TRUE(body["error"].contains("message") && body["error"].contains("type") &&
                body["error"].contains("param") && body["error"].contains("code"));
    return body["error"];
  };
  const auto bad = Ask(Post(R"("top_p":3)"));
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(error(bad)["param"], "top_p");
  const auto other =
      Ask("POST /v1/completions HTTP/1.1\r\nHost: a\r\ncontent-type: application/json\r\n"
          "content-length: 15\r\n\r\n{\"model\":\"gpt\"}");
  EXPECT_EQ(other.status, 404);
  EXPECT_EQ(error(other)["param"], "model");
  const auto chat =
      Ask("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\ncontent-length: 0\r\n\r\n");
  EXPECT_EQ(chat.status, 404);
  EXPECT_THAT(error(chat)["message"].get<std::string>(), HasSubstr("/v1/completions"));
  const auto form = Ask("POST /v1/completions HTTP/1.1\r\nHost: a\r\ncontent-length: 0\r\n\r\n");
  EXPECT_EQ(form.status, 415);
  error(form);
  const auto method = Get("/v1/completions");
  EXPECT_EQ(method.status, 405);
  EXPECT_THAT(method.head, HasSubstr("allow: post\r\n"));
  error(method);
  EXPECT_EQ(Get("/v1/nothing").status, 404);
  error(Get("/v1/nothing"));
  const auto large = Ask(Post(R"("prompt":")" + std::string(5000, 'x') + "\""));
  EXPECT_EQ(large.status, 413);
  error(large);
}

TEST_F(CompletionsTest, AFullQueueSaysWhenToTryAgain) {
  EngineShape shape = TestShape();
  shape.max_rows = 1;
  Start(shape, {.max_queue = 1});
  CloseGate();
  SocketClient running = Connect();
  running.Send(Post(R"("prompt":"a","max_tokens":4)"));
  gate_.AwaitStep(1);
  // The queue hears of it a moment after the engine.
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_running == 1; }));
  SocketClient queued = Connect();
  queued.Send(Post(R"("prompt":"b","max_tokens":4)"));
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_waiting == 1; }));
  const auto refused = Ask(Post(R"("prompt":"c","max_tokens":4)"));
  EXPECT_EQ(refused.status, 429);
  EXPECT_THAT(refused.head, HasSubstr("retry-after: 1\r\n"));
  gate_.Open();
  EXPECT_EQ(running.ReadResponse().status, 200);
  EXPECT_EQ(queued.ReadResponse().status, 200);
}

TEST_F(CompletionsTest, DeadlinesThatPassAreGatewayTimeouts) {
  Start();
  CloseGate();
  SocketClient whole = Connect();
  whole.Send(Post(R"("prompt":"a","max_tokens":4000,"timeout_ms":50)"));
  SocketClient stream = Connect();
  stream.Send(Post(R"("prompt":"b","max_tokens":4000,"timeout_ms":50,"stream":true)"));
  gate_.AwaitStep(1);
  // Deadlines are looked at between steps.
  EXPECT_TRUE(Eventually([&] {
    gate_.Allow(1);
    return server_->stats().finished[static_cast<size_t>(SequenceEnd::kDeadline)] +
               server_->stats().rejected_deadline ==
           2;
  }));
  EXPECT_EQ(whole.ReadResponse().status, 504);
  // A status code if nothing was said before, else an event.
  const auto response = stream.ReadResponse();
  EXPECT_TRUE(response.status == 504 || response.status == 200) << response.status;
  EXPECT_THAT(response.body, HasSubstr(R"("code":"deadline_exceeded")"));
}

TEST_F(CompletionsTest, AStreamThatFailsHalfWayEndsWithAnError) {
  Start();
  engine_->on_step = [this](std::span<const Row>) {
    (void)gate_.Pass();
    return engine_->steps > 2 ? absl::InternalError("the device failed") : absl::OkStatus();
  };
  SocketClient client = Connect();
  client.Send(Post(R"("prompt":"a","max_tokens":3000,"stream":true)", "connection: close\r\n"));
  gate_.Allow(2);
  EXPECT_TRUE(client.ReadUntil("data: {").has_value());
  gate_.Open();
  const std::string rest = client.ReadAll();
  EXPECT_THAT(rest, HasSubstr(R"({"error":{"message":"the engine has failed")"));
  EXPECT_THAT(rest, Not(HasSubstr("[DONE]")));
}

class LeavingClientTest : public CompletionsTest, public ::testing::WithParamInterface<bool> {};
INSTANTIATE_TEST_SUITE_P(WholeAndStreamed, LeavingClientTest, ::testing::Bool());

TEST_P(LeavingClientTest, FreesItsRowsWithinAStep) {
  options_.http.threads = 1;  // which sees things in their order
  Start();
  CloseGate();
  SocketClient client = Connect();
  client.Send(Post(absl::StrCat(R"("prompt":"a","max_tokens":4000,"n":4,"stream":)",
                                GetParam() ? "true" : "false")));
  gate_.AwaitStep(1);
  client.Close();
  // What comes later is answered, so that what came before has been seen.
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Get("/healthz").status, 200);
  // The step that runs, and one that may have been planned.
  gate_.Allow(2);
  // A token that came just before the end may have ended its sequence instead.
  EXPECT_TRUE(Eventually([&] {
    const auto& finished = server_->stats().finished;
    return finished[static_cast<size_t>(SequenceEnd::kCancelled)] +
               finished[static_cast<size_t>(SequenceEnd::kListener)] ==
           4;
  }));
}

TEST_F(CompletionsTest, ASlowReaderHoldsUpItsOwnSequencesAlone) {
  options_.max_unread_bytes = 4096;
  Start(TestShape(), {.max_pause = std::chrono::hours(1)});
  SocketClient slow = Connect(/*receive_buffer=*/4096);
  slow.Send(Post(R"("prompt":"a","max_tokens":4000,"logprobs":5,"stream":true)"));
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_paused == 1; }));
  const json other = Complete(R"("prompt":"b","max_tokens":200)");
  EXPECT_EQ(other["usage"]["completion_tokens"], 200);
  const auto response = slow.ReadResponse();
  int64_t tokens = 0;
  for (const json& event : Events(response.body)) {
    const json& logprobs = event["choices"][0]["logprobs"];
    if (!logprobs.is_null()) tokens += static_cast<int64_t>(logprobs["tokens"].size());
  }
  EXPECT_EQ(tokens, 4000);
}

TEST_F(CompletionsTest, AReaderThatStopsLosesItsSequence) {
  options_.max_unread_bytes = 4096;
  Start(TestShape(), {.max_pause = std::chrono::milliseconds(50)});
  SocketClient slow = Connect(/*receive_buffer=*/4096);
  slow.Send(Post(R"("prompt":"a","max_tokens":4000,"logprobs":5,"stream":true)"));
  EXPECT_TRUE(Eventually(
      [&] { return server_->stats().finished[static_cast<size_t>(SequenceEnd::kStalled)] == 1; }));
  EXPECT_TRUE(Eventually([&] { return server_->stats().pages_in_use == 0; }));
  EXPECT_THAT(slow.ReadResponse().body, HasSubstr("does not read"));
}

TEST_F(CompletionsTest, LongResponsesHaveToBeStreamed) {
  options_.http.max_response_bytes = 1024;
  Start();
  const auto refused = Ask(Post(R"("prompt":"a","max_tokens":4000,"logprobs":5)"));
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr(R"("param":"stream")"));
  EXPECT_EQ(Ask(Post(R"("prompt":"a","max_tokens":400,"logprobs":5,"stream":true)")).status, 200);
}

TEST_F(CompletionsTest, FiveHundredStreamsRunSideBySide) {
  EngineShape shape = TestShape();
  shape.max_rows = 64;
  shape.num_pages = 8192;
  Start(shape);
  std::deque<SocketClient> clients;
  for (int i = 0; i < 500; ++i) {
    clients.push_back(Connect());
    clients.back().Send(Post(absl::StrCat(R"("prompt":")", i, R"(","max_tokens":32,"stream":true,)",
                                          R"("stream_options":{"include_usage":true})")));
  }
  for (SocketClient& client : clients) {
    const auto response = client.ReadResponse();
    ASSERT_EQ(response.status, 200) << response.body;
    EXPECT_EQ(Events(response.body).back()["usage"]["completion_tokens"], 32);
  }
}

TEST_F(CompletionsTest, ClientsThatDieLeaveNothingBehind) {
  Start();
  for (int i = 0; i < 200; ++i) {
    SocketClient client = Connect();
    const std::string request = Post(R"("prompt":"a","max_tokens":2000,"stream":true)");
    // Some of a request, all of it, or all and some of the answer; then a reset.
    client.Send(i % 3 == 0 ? request.substr(0, request.size() / 2) : request);
    if (i % 3 == 1) {
      EXPECT_TRUE(client.ReadUntil("data: ").has_value());
    }
    client.Close(/*reset=*/true);
  }
  EXPECT_TRUE(Eventually([&] {
    const SchedulerStats stats = server_->stats();
    return stats.pages_in_use == 0 && stats.num_running + stats.num_waiting == 0;
  }));
  EXPECT_EQ(Complete(R"("prompt":"a","max_tokens":4)")["usage"]["completion_tokens"], 4);
}

TEST_F(CompletionsTest, DrainEndsReadinessAndNewWorkAndLetsStreamsEnd) {
  Start();
  EXPECT_EQ(Get("/readyz").status, 200);
  CloseGate();
  SocketClient running = Connect();
  running.Send(Post(R"("prompt":"a","max_tokens":40,"stream":true)"));
  gate_.AwaitStep(1);
  server_->Drain();
  EXPECT_EQ(Get("/readyz").status, 503);
  EXPECT_EQ(Get("/healthz").status, 200);
  const auto refused = Ask(Post(R"("prompt":"b")"));
  EXPECT_EQ(refused.status, 503);
  EXPECT_THAT(refused.head, HasSubstr("retry-after"));
  gate_.Open();
  EXPECT_EQ(Events(running.ReadResponse().body).back()["choices"][0]["finish_reason"], "length");
}

TEST_F(CompletionsTest, AnEngineThatFailedIsNotReady) {
  Start();
  engine_->on_step = [](std::span<const Row>) { return absl::InternalError("the device failed"); };
  EXPECT_EQ(Ask(Post(R"("prompt":"a")")).status, 503);
  EXPECT_TRUE(Eventually([&] { return Get("/readyz").status == 503; }));
  EXPECT_EQ(Get("/healthz").status, 200);
  EXPECT_FALSE(server_->Wait().ok());
  server_.reset();
}

TEST_F(CompletionsTest, APortThatIsTakenIsAnError) {
  Start();
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.http.listen = server_->http_address();
  FakeEngine other(TestShape());
  const auto second = Server::Start(options, {}, {TestModel(), {Borrowed<Engine>(&other)}});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("http.listen: cannot bind"));
}

TEST_F(CompletionsTest, ModelsAreListedAndFound) {
  Start();
  const json list = json::parse(Get("/v1/models").body);
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 1u);
  EXPECT_EQ(list["data"][0]["id"], "test");
  EXPECT_EQ(json::parse(Get("/v1/models/test").body), list["data"][0]);
  EXPECT_EQ(Get("/v1/models/other").status, 404);
}

TEST_F(CompletionsTest, StatsCountPagesSequencesAndTokens) {
  Start();
  Complete(R"("prompt":"a","max_tokens":20)");
  // The last step may still be delivering.
  EXPECT_TRUE(Eventually([&] {
    const json stats = json::parse(Get("/v1/stats").body);
    const json& pages = stats["pages"];
    EXPECT_EQ(pages["free"].get<int>() + pages["in_use"].get<int>() + pages["cached"].get<int>() +
                  pages["pinned"].get<int>(),
              pages["total"].get<int>());
    EXPECT_EQ(stats["model"]["name"], "test");
    return stats["totals"]["generated_tokens"] == 20 && stats["latency_ms"]["sequences"] == 1 &&
           stats["latency_ms"]["duration"]["p99"].get<double>() > 0;
  }));
}

TEST_F(CompletionsTest, ThePageLoadsNothingFromElsewhere) {
  Start();
  const auto page = Get("/");
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.head, HasSubstr("content-security-policy: default-src 'none'"));
  EXPECT_THAT(page.head, HasSubstr("content-type: text/html"));
  for (const std::string file : {"/app.js", "/style.css", "/icon.svg"}) {
    EXPECT_THAT(page.body, HasSubstr(file.substr(1)));
    const auto response = Get(file);
    EXPECT_EQ(response.status, 200) << file;
    std::ifstream source(PHOTON_PAGE_FOLDER + file);
    EXPECT_EQ(response.body, std::string(std::istreambuf_iterator<char>(source), {})) << file;
  }
  EXPECT_THAT(page.body, Not(HasSubstr("http:")));
  EXPECT_THAT(page.body, Not(HasSubstr("https:")));
}

TEST_F(CompletionsTest, KeysAreAskedForWhereverTheModelSpeaks) {
  const std::string key = NewApiKey();
  const std::string file = ::testing::TempDir() + "/http_keys";
  std::ofstream(file) << ApiKeyLine({.name = "alice", .hash = HashOf(key)}) << "\n";
  options_.access.api_keys_file = file;
  Start();
  EXPECT_EQ(Ask(Post(R"("prompt":"a")")).status, 401);
  EXPECT_EQ(Ask(Post(R"("prompt":"a")", "authorization: Bearer wrong\r\n")).status, 401);
  EXPECT_EQ(Get("/v1/models").status, 401);
  EXPECT_EQ(Get("/v1/stats").status, 401);
  EXPECT_THAT(Get("/v1/stats").head, HasSubstr("www-authenticate: bearer\r\n"));
  EXPECT_EQ(Get("/v1/unknown").status, 401);
  EXPECT_EQ(Get("/").status, 200);
  EXPECT_EQ(Get("/healthz").status, 200);
  EXPECT_EQ(Get("/readyz").status, 200);
  const std::string header = "authorization: Bearer " + key + "\r\n";
  EXPECT_EQ(Ask(Post(R"("prompt":"a")", header)).status, 200);
  EXPECT_EQ(Get("/v1/models", header).status, 200);
  // Above what the key allows.
  EXPECT_EQ(Ask(Post(R"("prompt":"a","priority":"high")", header)).status, 403);
}

}  // namespace
}  // namespace photon
