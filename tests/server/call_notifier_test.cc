#include "server/call_notifier.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <vector>

namespace photon {
namespace {

class Reader : public Notified {
 public:
  explicit Reader(std::function<void()> on_notified) : on_notified_(std::move(on_notified)) {}
  void OnNotified() override { on_notified_(); }

 private:
  const std::function<void()> on_notified_;
};

TEST(CallNotifier, TellsInOrderHoweverCloselyTheyCome) {
  constexpr int kReaders = 10, kRounds = 200;
  std::vector<int> told;  // by the one thread
  {
    CallNotifier notifier(1);
    std::vector<std::shared_ptr<Reader>> readers;
    for (int i = 0; i < kReaders; ++i) {
      readers.push_back(std::make_shared<Reader>([&told, i] { told.push_back(i); }));
    }
    for (int round = 0; round < kRounds; ++round) {
      for (const auto& reader : readers) notifier.Notify(0, reader);
    }
    notifier.Stop();
  }
  ASSERT_EQ(told.size(), size_t{kReaders * kRounds});
  for (size_t i = 0; i < told.size(); ++i) ASSERT_EQ(told[i], static_cast<int>(i % kReaders));
}

// Each is told before the next is: a thread that pauses after its turn must still look again.
TEST(CallNotifier, TellsOneAfterTheOther) {
  CallNotifier notifier(2);
  for (int i = 0; i < 200; ++i) {
    std::promise<void> told;
    const auto reader = std::make_shared<Reader>([&told] { told.set_value(); });
    notifier.Notify(notifier.AssignThread(), reader);
    told.get_future().wait();
  }
}

TEST(CallNotifier, PassesOverThoseThatAreGone) {
  std::atomic<int> told = 0;
  CallNotifier notifier(1);
  std::promise<void> release;
  const auto first =
      std::make_shared<Reader>([waiting = release.get_future().share()] { waiting.wait(); });
  auto gone = std::make_shared<Reader>([&told] { ++told; });
  const auto there = std::make_shared<Reader>([&told] { told += 10; });
  notifier.Notify(0, first);
  notifier.Notify(0, gone);
  notifier.Notify(0, there);
  gone.reset();
  release.set_value();
  notifier.Stop();
  EXPECT_EQ(told, 10);
}

TEST(CallNotifier, TellsEveryoneFromManyThreads) {
  constexpr int kNotifiers = 4, kEach = 2000;
  std::atomic<int> told = 0;
  const auto reader = std::make_shared<Reader>([&told] { ++told; });
  {
    CallNotifier notifier(3);
    std::vector<std::thread> threads;
    for (int t = 0; t < kNotifiers; ++t) {
      threads.emplace_back([&notifier, &reader] {
        for (int i = 0; i < kEach; ++i) notifier.Notify(notifier.AssignThread(), reader);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }  // which stops it
  EXPECT_EQ(told, kNotifiers * kEach);
}

}  // namespace
}  // namespace photon
