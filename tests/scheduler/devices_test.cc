// Several devices behind one scheduler: where sequences go, and what holds for all of them
// together.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/scheduler/gate.h"
#include "tests/scheduler/scheduler_harness.h"

namespace photon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A scheduler over fake engines of one shape.
struct DevicesHarness {
  explicit DevicesHarness(int count, const EngineShape& shape = FakeEngine::DefaultShape(),
                          const SchedulerOptions& options = {}) {
    std::vector<Engine*> pointers;
    for (int i = 0; i < count; ++i) {
      engines.push_back(std::make_unique<FakeEngine>(shape));
      pointers.push_back(engines.back().get());
    }
    scheduler = *Scheduler::Create(pointers, &clock, options);
  }

  Record Start(SequenceRequest request, SequenceId* id = nullptr) {
    auto record = std::make_shared<RecordedSequence>();
    const auto submitted =
        scheduler->Submit(std::move(request), std::make_unique<RecordingListener>(record));
    EXPECT_TRUE(submitted.ok()) << submitted.status();
    if (id != nullptr && submitted.ok()) *id = *submitted;
    return record;
  }

  void Step() {
    const absl::Status status = scheduler->RunStep();
    ASSERT_TRUE(status.ok()) << status;
    scheduler->Flush();
    scheduler->CheckInvariants();
  }

  void Finish(const std::vector<Record>& records) {
    const auto has_ended = [](const Record& record) { return record->end.has_value(); };
    for (int step = 0; !std::all_of(records.begin(), records.end(), has_ended); ++step) {
      ASSERT_LT(step, 10'000) << "a sequence does not end";
      Step();
    }
  }

  // Until no step is computed any more.
  void Settle() {
    do Step();
    while (scheduler->stats().num_running > 0);
  }

  std::vector<int> NumRunning() const {
    std::vector<int> running;
    for (const DeviceStats& device : scheduler->stats().devices) {
      running.push_back(device.num_running);
    }
    return running;
  }

  std::vector<std::unique_ptr<FakeEngine>> engines;
  FakeClock clock;
  std::unique_ptr<Scheduler> scheduler;
};

SequenceRequest PinRequest(std::vector<TokenId> prompt) {
  SequenceRequest request = Request(std::move(prompt), 0);
  request.pin_until = TimePoint::max();
  return request;
}

// Lets no device begin a step before every other one has begun as many as it has: devices of one
// speed, whatever the machine makes of their threads. All must have work until Release().
class Pace {
 public:
  explicit Pace(int num_devices) : steps_(num_devices) {}

  void Begin(int device) {
    std::unique_lock lock(mutex_);
    const int64_t step = ++steps_[device];
    changed_.notify_all();
    changed_.wait(lock, [&] {
      return is_released_ || *std::min_element(steps_.begin(), steps_.end()) >= step;
    });
  }
  void Release() {
    std::lock_guard lock(mutex_);
    is_released_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int64_t> steps_;
  bool is_released_ = false;
};

TEST(Devices, NewWorkGoesWhereTheLeastIsLeft) {
  DevicesHarness h(3);
  std::vector<Record> records = {h.Start(Request(Prompt(4, 900), 120))};
  for (int i = 0; i < 8; ++i) records.push_back(h.Start(Request(Prompt(4, 50 * i), 60)));
  h.Step();
  EXPECT_THAT(h.NumRunning(), ElementsAre(3, 3, 3));
  h.Finish(records);
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(records[i + 1]->tokens, Continue(*h.engines[0], Prompt(4, 50 * i), 60));
  }
}

TEST(Devices, APromptThatIsCachedGoesToItsDevice) {
  DevicesHarness h(2);
  // Both are busy, so that the text's sequence goes to the second device.
  const Record other = h.Start(Request(Prompt(4, 500), 100));
  const Record first = h.Start(Request(Prompt(40), 4));
  h.Finish({other, first});
  h.Settle();
  const int before = h.engines[1]->steps;
  const Record second = h.Start(Request(Prompt(40), 8));
  h.Finish({second});
  EXPECT_GT(h.engines[1]->steps, before);
  EXPECT_GE(second->stats.cached_tokens, 32);
  EXPECT_EQ(second->tokens, Continue(*h.engines[0], Prompt(40), 8));
}

TEST(Devices, AProbeIsAnsweredByTheDeviceThatItIsFor) {
  DevicesHarness h(3);
  SequenceRequest probe = Request(Prompt(1), 1);
  probe.probed_device = 1;
  h.Finish({h.Start(std::move(probe))});
  h.Settle();
  EXPECT_EQ(h.engines[0]->steps, 0);
  EXPECT_GT(h.engines[1]->steps, 0);
  EXPECT_EQ(h.engines[2]->steps, 0);
}

// To prefill it again costs less than to wait behind what runs where it is.
TEST(Devices, APromptThatManyWantIsPrefilledOnMoreDevices) {
  DevicesHarness h(2);
  std::vector<Record> records;
  for (int i = 0; i < 8; ++i) records.push_back(h.Start(Request(Prompt(24), 80)));
  h.Finish(records);
  h.Settle();
  EXPECT_GT(h.engines[0]->steps, 0);
  EXPECT_GT(h.engines[1]->steps, 0);
  const SchedulerStats stats = h.scheduler->stats();
  EXPECT_EQ(stats.prompt_tokens - stats.prompt_tokens_cached, 2 * 24);
  for (const Record& record : records) {
    EXPECT_EQ(record->tokens, Continue(*h.engines[0], Prompt(24), 80));
  }
}

TEST(Devices, PinsSpreadAndTheirQuestionsFollow) {
  DevicesHarness h(2);
  const std::vector<Record> pins = {h.Start(PinRequest(Prompt(40, 100))),
                                    h.Start(PinRequest(Prompt(40, 300)))};
  h.Finish(pins);
  const SchedulerStats stats = h.scheduler->stats();
  EXPECT_EQ(stats.devices[0].num_pins, 1);
  EXPECT_EQ(stats.devices[1].num_pins, 1);
  EXPECT_EQ(stats.num_pins, 2);
  EXPECT_NE(pins[0]->stats.pin, pins[1]->stats.pin);
  for (const TokenId text : {300, 100, 300}) {
    std::vector<TokenId> question = Prompt(40, text);
    question.push_back(7);
    const Record answer = h.Start(Request(question, 5));
    h.Finish({answer});
    EXPECT_EQ(answer->stats.cached_tokens, 40);
    EXPECT_EQ(answer->tokens, Continue(*h.engines[0], question, 5));
  }
  for (const Record& pin : pins) h.scheduler->Unpin(*pin->stats.pin);
  h.Settle();
  EXPECT_EQ(h.scheduler->stats().num_pins, 0);
}

TEST(Devices, PinsHoldTheirShareOfEachDevice) {
  DevicesHarness h(2);  // 16 of the 32 pages each
  for (const TokenId text : {0, 200}) h.Start(PinRequest(Prompt(10 * 8, text)));
  const auto refused = h.scheduler->Submit(
      PinRequest(Prompt(10 * 8, 400)),
      std::make_unique<RecordingListener>(std::make_shared<RecordedSequence>()));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("16 cache pages of a device and hold 10 at least; this one needs 10"));
  const Record small = h.Start(PinRequest(Prompt(6 * 8, 600)));
  h.Finish({small});
}

TEST(Devices, TheQueueIsOneForAll) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 1;
  DevicesHarness h(2, shape, {.max_queue = 2});
  std::vector<Record> records;
  for (int i = 0; i < 2; ++i) records.push_back(h.Start(Request(Prompt(4, 50 * i), 60)));
  while (h.scheduler->stats().num_running < 2) h.Step();
  for (int i = 2; i < 4; ++i) records.push_back(h.Start(Request(Prompt(4, 50 * i), 8)));
  const auto full = h.scheduler->Submit(
      Request(Prompt(4), 8),
      std::make_unique<RecordingListener>(std::make_shared<RecordedSequence>()));
  EXPECT_EQ(full.status().code(), absl::StatusCode::kResourceExhausted);
  h.Finish(records);
}

TEST(Devices, ASequenceThatWaitsForMemoryHoldsUpOneDeviceAndIsNotStarved) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.num_pages = 16;
  DevicesHarness h(2, shape);
  Pace pace(2);
  for (int device = 0; device < 2; ++device) {
    h.engines[device]->on_step = [&, device](std::span<const Row>) {
      pace.Begin(device);
      h.clock.Advance(std::chrono::milliseconds(1));
      return absl::OkStatus();
    };
  }
  const auto small = [&](int i) {
    // Up to 4 pages; the first ones end one after the other.
    return h.Start(Request(Prompt(4, 3 * i % 600), i < 8 ? 12 + i / 2 * 4 : 28));
  };
  std::vector<Record> smalls;
  for (int i = 0; i < 8; ++i) smalls.push_back(small(i));
  while (h.scheduler->stats().num_running < 8) h.Step();
  const Record large = h.Start(Request(Prompt(4, 700), 124));  // all 16
  while (!large->end.has_value()) {
    ASSERT_LT(smalls.size(), 400u) << "the large one is starved";
    smalls.push_back(small(static_cast<int>(smalls.size())));
    h.Step();
  }
  pace.Release();
  h.Finish(smalls);
  h.Settle();
  const auto began_before = [&](const Record& record) {
    return *record->stats.first_step < *large->stats.first_step;
  };
  EXPECT_GT(std::count_if(smalls.begin() + 8, smalls.end(), began_before), 0);
  EXPECT_EQ(h.scheduler->stats().preemptions, 0);
}

// What steps cost, by TenantId, on all devices; rows name theirs in sampling.query.
struct Meter {
  explicit Meter(DevicesHarness& h) : pace(static_cast<int>(h.engines.size())) {
    for (size_t device = 0; device < h.engines.size(); ++device) {
      h.engines[device]->on_step = [this, device](std::span<const Row> rows) {
        pace.Begin(static_cast<int>(device));
        for (const Row& row : rows) {
          service[row.sampling.query] +=
              static_cast<int64_t>(row.input.size()) / 4 * 4 + (row.decode ? 28 : 0);
        }
        return absl::OkStatus();
      };
    }
    const EngineShape& shape = h.engines[0]->shape();
    full_step = shape.max_prefill_tokens + 28 * shape.max_rows;
  }
  Pace pace;
  std::array<std::atomic<int64_t>, 3> service = {};
  int64_t full_step = 0;
};

TEST(Devices, TenantsGetEqualServiceOfAllTogether) {
  for (const int num_devices : {2, 3}) {
    for (const int num_rows : {1, 3}) {
      EngineShape shape = FakeEngine::DefaultShape();
      shape.max_rows = num_rows;
      shape.num_pages = 200;
      DevicesHarness h(num_devices, shape, {.max_queue = 2000});
      Meter meter(h);
      const auto start = [&](int tenant, int prompt_size, int max_tokens, TokenId first) {
        SequenceRequest request = Request(Prompt(prompt_size, first), max_tokens);
        request.tenant = TenantId{static_cast<uint64_t>(tenant)};
        request.sampling.query = tenant;
        h.Start(request);
      };
      for (int i = 0; i < 400; ++i) start(1, 3, 20, 2 * i);
      for (int i = 0; i < 800; ++i) start(2, 9, 8, i);
      for (int step = 0; step < 300; ++step) {
        h.Step();
        // A device may be a step ahead of the others, and a sequence keeps its row to its end.
        const int64_t sequence = 6 * 28;  // of the first tenant
        EXPECT_LE(std::abs(meter.service[1] - meter.service[2]),
                  num_devices * (2 * meter.full_step + num_rows * sequence))
            << "step " << step << ", rows " << num_rows << ", devices " << num_devices;
      }
      EXPECT_GT(h.scheduler->stats().num_waiting, 10);
      EXPECT_GT(meter.service[1], 10 * meter.full_step);
      meter.pace.Release();
      h.scheduler.reset();
    }
  }
}

TEST(Devices, AHigherPriorityTakesItsRowWhereverItComes) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 2;
  DevicesHarness h(2, shape);
  std::array<std::array<int, 3>, 2> steps = {};  // by device, and by how many of its rows were high
  for (int device = 0; device < 2; ++device) {
    h.engines[device]->on_step = [&steps, device](std::span<const Row> rows) {
      ++steps[device][std::count_if(rows.begin(), rows.end(),
                                    [](const Row& row) { return row.sampling.query == 1; })];
      return absl::OkStatus();
    };
  }
  std::vector<Record> records;
  for (int i = 0; i < 12; ++i) records.push_back(h.Start(Request(Prompt(4, 50 * i), 100)));
  while (h.scheduler->stats().num_running < 4) h.Step();
  std::vector<Record> high;
  for (int i = 0; i < 4; ++i) {
    SequenceRequest request = Request(Prompt(4, 50 * i + 20), 16);
    request.priority = Priority::kHigh;
    request.sampling.query = 1;
    high.push_back(h.Start(request));
  }
  h.Finish(high);
  h.Finish(records);
  h.Settle();
  // They had all rows of both devices for the four steps that they took.
  for (const auto& of_device : steps) {
    EXPECT_EQ(of_device[1], 0);
    EXPECT_EQ(of_device[2], 4);
  }
}

TEST(Devices, ALongStepHoldsUpNoOtherDevice) {
  DevicesHarness h(2);
  Gate gate;
  h.engines[0]->on_step = [&](std::span<const Row>) {
    gate.Pass();
    return absl::OkStatus();
  };
  const Record slow = h.Start(Request(Prompt(4), 4));
  const Record quick = h.Start(Request(Prompt(4, 100), 40));
  h.Finish({quick});
  const Record next = h.Start(Request(Prompt(4, 200), 40));
  h.Finish({next});
  EXPECT_THAT(slow->tokens, IsEmpty());
  gate.Open();
  h.Finish({slow});
  EXPECT_EQ(slow->tokens, Continue(*h.engines[0], Prompt(4), 4));
}

// The first device goes on when the second has computed what came meanwhile: the test hangs if that
// waits for the first.
TEST(Devices, WhatComesDuringAStepIsBegunByADeviceThatStandsStill) {
  DevicesHarness h(2);
  Gate started, gate;
  h.engines[0]->on_step = [&](std::span<const Row>) {
    started.Open();
    gate.Pass();
    return absl::OkStatus();
  };
  h.engines[1]->on_step = [&](std::span<const Row>) {
    gate.Open();
    return absl::OkStatus();
  };
  const Record slow = h.Start(Request(Prompt(4), 4));
  Record quick;
  std::thread client([&] {
    started.Pass();
    quick = h.Start(Request(Prompt(4, 100), 4));
  });
  h.Finish({slow});
  client.join();
  h.Finish({quick});
  EXPECT_EQ(h.engines[1]->steps, 1);
}

TEST(Devices, OneThatFailsEndsEverything) {
  DevicesHarness h(2);
  Gate gate;
  h.engines[0]->on_step = [&](std::span<const Row>) {
    gate.Pass();
    return absl::OkStatus();
  };
  h.engines[1]->on_step = [](std::span<const Row>) { return absl::InternalError("device lost"); };
  const Record here = h.Start(Request(Prompt(4), 40));
  const Record there = h.Start(Request(Prompt(4, 100), 40));
  EXPECT_EQ(h.scheduler->RunStep(), absl::InternalError("fake: device lost"));
  EXPECT_EQ(here->end, SequenceEnd::kEngineFailed);
  EXPECT_EQ(there->end, SequenceEnd::kEngineFailed);
  EXPECT_FALSE(h.scheduler->WaitForWork());
  const auto refused = h.scheduler->Submit(
      Request(Prompt(4), 8),
      std::make_unique<RecordingListener>(std::make_shared<RecordedSequence>()));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  // The other device's step still uses its sequence; the scheduler waits for it.
  gate.Open();
  h.scheduler.reset();
  EXPECT_EQ(here->finish_calls, 1);
}

TEST(Devices, ASchedulerThatGoesWaitsForEveryStep) {
  std::vector<Record> records;
  {
    DevicesHarness h(3);
    for (int i = 0; i < 9; ++i) records.push_back(h.Start(Request(Prompt(4, 50 * i), 100)));
    for (int step = 0; step < 4; ++step) ASSERT_TRUE(h.scheduler->RunStep().ok());
  }
  for (const Record& record : records) EXPECT_EQ(record->end, SequenceEnd::kCancelled);
}

TEST(Devices, EstimatesCountTheRoomOfEach) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 1;
  DevicesHarness h(2, shape);
  const Record first = h.Start(Request(Prompt(4), 100));
  while (h.scheduler->stats().num_running < 1) h.Step();
  EXPECT_TRUE(h.scheduler->Estimate(4, 40).fits_now);
  const Record second = h.Start(Request(Prompt(4, 100), 100));
  while (h.scheduler->stats().num_running < 2) h.Step();
  EXPECT_FALSE(h.scheduler->Estimate(4, 40).fits_now);
  EXPECT_TRUE(h.scheduler->Estimate(4, 40).fits);
  h.Finish({first, second});
}

TEST(Devices, ShapesThatDifferAreNamed) {
  EngineShape other = FakeEngine::DefaultShape();
  other.device = "other";
  other.max_rows = 5;
  other.vocab_size = 999;
  other.num_pages = 7;  // may differ
  FakeEngine first, second(other);
  FakeClock clock;
  Engine* const engines[] = {&first, &second};
  const absl::Status status = Scheduler::Create(engines, &clock, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()),
            "vocab_size: fake has 1000, other has 999; max_rows: fake has 4, other has 5");
  EXPECT_EQ(Scheduler::Create(std::span<Engine* const>(), &clock, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace photon
