// A thousand streams at once over one connection.
#include <grpcpp/support/client_callback.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "tests/server/server_fixture.h"

namespace photon {
namespace {

constexpr int kStreams = 1000;

// Counts streams that have ended, by the code of their status.
class Outcomes {
 public:
  void Add(grpc::StatusCode code) {
    std::lock_guard lock(mutex_);
    ++counts_[code];
    ++total_;
    changed_.notify_all();
  }
  std::map<grpc::StatusCode, int> Await(int total) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return total_ == total; });
    return counts_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<grpc::StatusCode, int> counts_;
  int total_ = 0;
};

// Reads a stream to its end, or cancels it after so many messages, where that is not negative.
class Stream final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Stream(v1::GenerationService::Stub& stub, v1::GenerateRequest request, int cancel_after,
         std::chrono::milliseconds deadline, Outcomes& outcomes)
      : request_(std::move(request)), cancel_after_(cancel_after), outcomes_(outcomes) {
    if (deadline.count() > 0) {
      context_.set_deadline(std::chrono::system_clock::now() + deadline);
    }
    stub.async()->Generate(&context_, &request_, this);
    StartRead(&message_);
    StartCall();
    if (cancel_after_ == 0) context_.TryCancel();
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (++num_read_ == cancel_after_) context_.TryCancel();
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override { outcomes_.Add(status.error_code()); }

  grpc::ClientContext context_;
  const v1::GenerateRequest request_;
  const int cancel_after_;
  Outcomes& outcomes_;
  v1::GenerateResponse message_;
  int num_read_ = 0;
};

TEST_F(ServerTest, AThousandStreamsThatComeAndGoLeaveNothingBehind) {
  EngineShape shape = TestShape();
  shape.max_rows = 64;
  shape.num_pages = 2048;
  Start(shape, {.max_queue = 2 * kStreams, .reserved_output_percent = 25});
  std::mt19937_64 random(11);
  Outcomes outcomes;
  std::vector<std::unique_ptr<Stream>> streams;
  CloseGate();  // until all have come
  for (int i = 0; i < kStreams; ++i) {
    v1::GenerateRequest request =
        Request(1 + static_cast<int>(random() % 120), std::string(random() % 200, 'a'));
    request.mutable_parameters()->set_n(i % 10 == 0 ? 2 : 1);
    const int cancel_after = i % 3 == 0 ? static_cast<int>(random() % 5) : -1;
    const std::chrono::milliseconds deadline(i % 4 == 1 ? 1 + random() % 400 : 0);
    streams.push_back(std::make_unique<Stream>(*generation_, std::move(request), cancel_after,
                                               deadline, outcomes));
  }
  gate_.Open();
  const std::map<grpc::StatusCode, int> counts = outcomes.Await(kStreams);
  EXPECT_GT(counts.at(grpc::StatusCode::OK), kStreams / 4);
  EXPECT_GT(counts.at(grpc::StatusCode::CANCELLED), kStreams / 50);
  EXPECT_GT(counts.at(grpc::StatusCode::DEADLINE_EXCEEDED), 0);
  EXPECT_EQ(counts.size(), 3u);
  EXPECT_TRUE(Eventually([&] {
    const SchedulerStats stats = server_->stats();
    return stats.num_running + stats.num_waiting == 0 && stats.pages_in_use == 0;
  }));
  const SchedulerStats stats = server_->stats();
  EXPECT_EQ(stats.pages_free + stats.pages_cached, stats.num_pages);
}

}  // namespace
}  // namespace photon
