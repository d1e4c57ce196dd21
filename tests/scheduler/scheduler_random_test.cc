// Random events against a model of what every sequence must hear: small pools, few texts, so that
// sharing, copies, eviction and preemption happen all the time. All that can be known is checked
// after each event; the fake engine refuses every step that reads or writes a wrong page.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "scheduler/scheduler.h"
#include "tests/scheduler/fake_clock.h"
#include "tests/scheduler/fake_engine.h"
#include "tests/scheduler/recorded_sequence.h"

namespace photon {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr int kEventsPerWorld = 10'000;

// What happened; the rare things must have.
struct Tally {
  SchedulerStats stats;           // summed
  int64_t adoptions = 0;          // a sequence went on with a page that another one had written
  int64_t reencoded = 0;          // kRecGen sequences that were preempted
  int64_t refused_pins = 0;       // kResourceExhausted, for the pins' budget
  int64_t expired_pins = 0;       // that ended by themselves
  int64_t settled = 0;            // times that everything ended undisturbed
  int64_t cached_on_arrival = 0;  // sequences that found their prompt's beginning in the cache
  int64_t moved = 0;              // sequences that went on on another device
};

struct Live {
  SequenceId id{};
  SequenceRequest request;
  std::shared_ptr<RecordedSequence> record;
  bool paused = false;
};

struct PinnedText {
  PinId id{};
  TimePoint until;
};

// A scheduler over some devices, and the clients that keep it busy.
class World {
 public:
  World(uint32_t seed, int num_devices, Tally* tally)
      : random_(seed), tally_(tally), engine_(Shape(seed)) {
    SchedulerOptions options;
    options.max_queue = Uniform(6, 20);
    options.reserved_output_percent = std::array{100, 0, 50}[seed % 3];
    options.preempt_for_fairness = seed / 3 % 2 == 0;
    options.max_pause = milliseconds(8);
    std::vector<Engine*> engines;
    for (int device = 0; device < num_devices; ++device) {
      EngineShape shape = engine_.shape();
      // What is long fits on the first device alone, now and then.
      if (device > 0) shape.num_pages = Uniform(shape.num_pages / 2, shape.num_pages + 5);
      devices_.push_back(std::make_unique<FakeEngine>(shape));
      devices_.back()->on_step = [this, device](std::span<const Row> rows) {
        clock_.Advance(microseconds(100));
        NotePlaces(device, rows);
        return absl::OkStatus();
      };
      engines.push_back(devices_.back().get());
    }
    scheduler_ = *Scheduler::Create(engines, &clock_, options);
    for (std::vector<TokenId>& document : documents_) document = RandomTokens(Uniform(20, 90));
    // Documents of the same beginning, too.
    documents_[1].assign(documents_[0].begin(), documents_[0].begin() + 15);
    for (TokenId token : RandomTokens(40)) documents_[1].push_back(token);
  }

  void RunEvents() {
    for (int event = 0; event < kEventsPerWorld && !::testing::Test::HasFailure(); ++event) {
      const int kind = Uniform(0, 99);
      if (kind < 30) {
        SubmitSome();
      } else if (kind < 78) {
        Step();
      } else if (kind < 81) {
        if (Live* live = Any()) scheduler_->Cancel(live->id);
      } else if (kind < 87) {
        if (Live* live = Any()) {
          scheduler_->Pause(live->id);
          live->paused = true;
        }
      } else if (kind < 92) {
        if (Live* live = Any()) {
          scheduler_->Resume(live->id);
          live->paused = false;
        }
      } else if (kind < 94) {
        MovePin();
      } else {
        clock_.Advance(microseconds(Uniform(0, 1500)));
      }
      if (event % 500 == 499) Settle();
      Check();
    }
    if (!::testing::Test::HasFailure()) Finish();
  }

 private:
  static EngineShape Shape(uint32_t seed) {
    std::mt19937 random(seed * 977);
    const auto uniform = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    EngineShape shape = FakeEngine::DefaultShape();
    shape.vocab_size = 60;
    shape.meta_tokens = uniform(2, 5);
    shape.page_tokens = shape.meta_tokens * uniform(1, 4);
    shape.max_context = 120;
    shape.num_pages = (120 + shape.page_tokens - 1) / shape.page_tokens + uniform(0, 12);
    shape.max_rows = uniform(2, 6);
    shape.max_prefill_tokens = shape.meta_tokens * uniform(1, 8) + uniform(0, 1);
    return shape;
  }

  int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  std::vector<TokenId> RandomTokens(int count) {
    std::vector<TokenId> tokens(count);
    for (TokenId& token : tokens) token = Uniform(0, engine_.shape().vocab_size - 1);
    return tokens;
  }

  Live* Any() { return live_.empty() ? nullptr : &live_[Uniform(0, live_.size() - 1)]; }

  // Begins like a document, or goes on after an answer.
  std::vector<TokenId> Prompt() {
    const std::vector<TokenId>& document = documents_[Uniform(0, documents_.size() - 1)];
    std::vector<TokenId> prompt(document.begin(),
                                document.begin() + Uniform(0, static_cast<int>(document.size())));
    const int tail = Uniform(0, 3) == 0 ? 0 : Uniform(0, 6);
    for (TokenId token : RandomTokens(tail)) prompt.push_back(token);
    return prompt;
  }

  SequenceRequest Request() {
    SequenceRequest request;
    request.prompt = Prompt();
    request.tenant = TenantId{static_cast<uint64_t>(Uniform(0, 3) == 0 ? Uniform(1, 2) : 0)};
    request.priority = Priority{static_cast<uint8_t>(Uniform(0, 5) == 0 ? Uniform(0, 2) : 1)};
    // Few seeds, so that equal prompts go on alike; the fake engine tells sequences by `query`.
    request.sampling.seed = Uniform(1, 3);
    request.sampling.query = ++num_requests_;
    request.mode = engine_.shape().modes[Uniform(0, 2)];
    if (Uniform(0, 2) == 0) request.stop_tokens = RandomTokens(Uniform(1, 3));
    if (Uniform(0, 4) == 0) request.deadline = clock_.Now() + microseconds(Uniform(0, 3000));
    if (Uniform(0, 9) == 0) {
      request.max_tokens = 0;
      request.pin_until = clock_.Now() + microseconds(Uniform(0, 20'000));
    } else {
      const int room = MaxSequenceTokens(engine_.shape()) - static_cast<int>(request.prompt.size());
      request.max_tokens = Uniform(1, std::max(1, std::min(room, 50)));
    }
    return request;
  }

  void SubmitSome() {
    const SequenceRequest request = Request();
    std::vector<Scheduler::Submission> submissions;
    std::vector<Live> submitted;
    for (int n = Uniform(0, 3) == 0 ? Uniform(2, 5) : 1; n > 0; --n) {
      Live live;
      live.request = request;
      live.request.sampling.query = ++num_requests_;
      if (Uniform(0, 1) == 0) live.request.sampling.seed = Uniform(1, 3);
      live.record = std::make_shared<RecordedSequence>();
      if (Uniform(0, 4) == 0) live.record->stop_after = Uniform(1, 30);
      submissions.push_back({live.request, std::make_unique<RecordingListener>(live.record)});
      submitted.push_back(std::move(live));
    }
    const auto ids = scheduler_->SubmitAll(std::move(submissions));
    if (!ids.ok()) {
      const bool is_pin = request.pin_until.has_value();
      if (is_pin && absl::StartsWith(ids.status().message(), "pins")) ++tally_->refused_pins;
      ASSERT_NE(ids.status().code(), absl::StatusCode::kUnavailable);
      return;
    }
    for (size_t i = 0; i < submitted.size(); ++i) {
      submitted[i].id = (*ids)[i];
      live_.push_back(std::move(submitted[i]));
      ++accepted_;
    }
  }

  void Step() {
    const absl::Status status = scheduler_->RunStep();
    ASSERT_TRUE(status.ok()) << status;
    // Otherwise the step's last tokens come with the next one.
    if (Uniform(0, 1) == 0) scheduler_->Flush();
  }

  void MovePin() {
    if (pins_.empty()) return;
    const size_t i = Uniform(0, pins_.size() - 1);
    if (Uniform(0, 2) > 0) {
      pins_[i].until = clock_.Now() + microseconds(Uniform(0, 10'000));
      scheduler_->ExtendPin(pins_[i].id, pins_[i].until);
    } else {
      scheduler_->Unpin(pins_[i].id);
      pins_.erase(pins_.begin() + i);
    }
  }

  // Lets everything end, as a server's loop would: whoever could run is not forgotten, and nobody
  // stands in another's way for ever.
  void Settle() {
    for (Live& live : live_) {
      scheduler_->Resume(live.id);
      live.paused = false;
    }
    for (const PinnedText& pin : pins_) scheduler_->Unpin(pin.id);
    pins_.clear();
    for (int step = 0; !live_.empty(); ++step) {
      ASSERT_LT(step, 5000) << live_.size() << " sequences do not end";
      // New pins end with their time, which only steps move on here.
      for (const PinnedText& pin : pins_) scheduler_->Unpin(pin.id);
      pins_.clear();
      ASSERT_TRUE(scheduler_->WaitForWork());
      const absl::Status status = scheduler_->RunStep();
      ASSERT_TRUE(status.ok()) << status;
      Check();
    }
    ++tally_->settled;
    // A step of rows that have ended may still be computed.
    do {
      ASSERT_TRUE(scheduler_->RunStep().ok());
    } while (scheduler_->stats().num_running > 0);
    EXPECT_EQ(scheduler_->stats().pages_in_use, 0);
  }

  void Check() {
    scheduler_->CheckInvariants();
    const SchedulerStats stats = scheduler_->stats();
    ASSERT_EQ(stats.pages_free + stats.pages_in_use + stats.pages_cached + stats.pages_pinned,
              stats.num_pages);
    ASSERT_GE(std::min({stats.pages_free, stats.pages_in_use, stats.pages_cached}), 0);
    ASSERT_GE(stats.pages_pinned, 0);
    ASSERT_LE(stats.num_paused, stats.num_running);
    DeviceStats sum;
    for (const DeviceStats& device : stats.devices) {
      sum += device;
      ASSERT_EQ(device.pages_free + device.pages_in_use + device.pages_cached + device.pages_pinned,
                device.num_pages);
    }
    ASSERT_EQ(sum.num_pages, stats.num_pages);
    ASSERT_EQ(sum.num_running, stats.num_running);
    std::erase_if(live_, [&](const Live& live) {
      EXPECT_LE(live.record->finish_calls, 1);
      if (live.record->end.has_value()) CheckEnded(live);
      return live.record->end.has_value();
    });
    std::erase_if(pins_, [&](const PinnedText& pin) {
      if (clock_.Now() < pin.until) return false;
      ++tally_->expired_pins;
      return true;
    });
  }

  void CheckEnded(const Live& live) {
    ++ended_;
    const RecordedSequence& record = *live.record;
    const SequenceRequest& request = live.request;
    const auto& stops = request.stop_tokens;
    std::vector<TokenId> whole =
        Continue(engine_, request.prompt, request.max_tokens, request.sampling);
    const auto stop = std::find_first_of(whole.begin(), whole.end(), stops.begin(), stops.end());
    const bool has_stop = stop != whole.end();
    if (has_stop) whole.erase(stop + 1, whole.end());

    const std::vector<TokenId>& heard = record.tokens;
    EXPECT_EQ(record.stats.generated_tokens, static_cast<int>(heard.size()));
    ASSERT_LE(heard.size(), whole.size());
    ASSERT_TRUE(std::equal(heard.begin(), heard.end(), whole.begin()))
        << "a wrong token, of a prompt of " << request.prompt.size() << " tokens";
    EXPECT_EQ(record.stats.prompt_tokens, static_cast<int>(request.prompt.size()));
    EXPECT_LE(record.stats.cached_tokens, record.stats.prompt_tokens);
    if (record.stats.cached_tokens > 0) ++tally_->cached_on_arrival;
    if (record.stats.reencoded_tokens > 0) {
      ++tally_->reencoded;
      EXPECT_EQ(request.mode, GenerationMode::kRecGen);
      EXPECT_GT(record.stats.preemptions, 0);
    }
    switch (*record.end) {
      case SequenceEnd::kListener:
        EXPECT_EQ(heard.size(), record.stop_after);
        break;
      case SequenceEnd::kStopToken:
        EXPECT_TRUE(has_stop);
        EXPECT_EQ(heard.size(), whole.size());
        break;
      case SequenceEnd::kLength:
        EXPECT_EQ(static_cast<int>(heard.size()), request.max_tokens);
        EXPECT_EQ(record.stats.pin.has_value(), request.pin_until.has_value());
        if (record.stats.pin.has_value()) pins_.push_back({*record.stats.pin, *request.pin_until});
        break;
      case SequenceEnd::kDeadline:
        EXPECT_NE(request.deadline, TimePoint::max());
        break;
      case SequenceEnd::kCancelled:
      case SequenceEnd::kStalled:
        break;
      case SequenceEnd::kDrained:
        EXPECT_TRUE(draining_);
        break;
      case SequenceEnd::kEngineFailed:
        ADD_FAILURE() << "the engine failed";
    }
  }

  // Inside a step, on the device's thread: a sequence goes on where the step before left it, but on
  // another page, or on another device.
  void NotePlaces(int device, std::span<const Row> rows) {
    const EngineShape& shape = engine_.shape();
    std::lock_guard lock(places_mutex_);
    for (const Row& row : rows) {
      const int whole = row.cached_tokens +
                        static_cast<int>(row.input.size()) / shape.meta_tokens * shape.meta_tokens;
      const Place before =
          std::exchange(places_[row.sampling.query],
                        {.device = device,
                         .end = whole + (row.decode ? shape.meta_tokens : 0),
                         .pages = std::vector<PageId>(row.pages.begin(), row.pages.end())});
      if (before.device >= 0 && before.device != device) ++tally_->moved;
      if (before.device != device || before.end != row.cached_tokens) continue;
      const int full = row.cached_tokens / shape.page_tokens;
      if (!std::equal(row.pages.begin(), row.pages.begin() + full, before.pages.begin())) {
        ++tally_->adoptions;
      }
    }
  }

  void Finish() {
    for (int i = 0; i < 10; ++i) SubmitSome();
    Step();
    draining_ = true;
    scheduler_->Drain(clock_.Now() + milliseconds(1));
    while (scheduler_->WaitForWork()) {
      clock_.Advance(microseconds(50));
      ASSERT_TRUE(scheduler_->RunStep().ok());
      Check();
    }
    EXPECT_TRUE(live_.empty());
    EXPECT_EQ(ended_, accepted_);
    const SchedulerStats stats = scheduler_->stats();
    EXPECT_EQ(stats.pages_in_use, 0);
    EXPECT_EQ(stats.num_running + stats.num_waiting, 0);
    int64_t finished = 0;
    for (size_t end = 0; end < stats.finished.size(); ++end) {
      finished += stats.finished[end];
      tally_->stats.finished[end] += stats.finished[end];
    }
    EXPECT_EQ(finished, accepted_);
    tally_->stats.steps += stats.steps;
    tally_->stats.step_rows += stats.step_rows;
    tally_->stats.wasted_slots += stats.wasted_slots;
    tally_->stats.page_copies += stats.page_copies;
    tally_->stats.evictions += stats.evictions;
    tally_->stats.preemptions += stats.preemptions;
    tally_->stats.rejected_queue_full += stats.rejected_queue_full;
    tally_->stats.rejected_deadline += stats.rejected_deadline;
  }

  struct Place {
    int device = -1;
    int end = 0;
    std::vector<PageId> pages;
  };

  std::mt19937 random_;
  Tally* const tally_;
  FakeClock clock_;
  const FakeEngine engine_;  // that never steps: what all of them are
  std::vector<std::unique_ptr<FakeEngine>> devices_;
  std::unique_ptr<Scheduler> scheduler_;
  bool draining_ = false;
  std::array<std::vector<TokenId>, 4> documents_;
  uint32_t num_requests_ = 0;
  std::vector<Live> live_;
  std::vector<PinnedText> pins_;
  std::mutex places_mutex_;
  std::map<uint32_t, Place> places_;  // by query
  int64_t accepted_ = 0;
  int64_t ended_ = 0;
};

class SchedulerRandom : public ::testing::TestWithParam<int> {};

TEST_P(SchedulerRandom, NoPageIsLostAndNoTokenIsWrong) {
  const int num_devices = GetParam();
  Tally tally;
  for (uint32_t seed = 1; seed <= 12 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    World(seed, num_devices, &tally).RunEvents();
  }
  // The small worlds are worth nothing unless this happens in them.
  const SchedulerStats& stats = tally.stats;
  const auto ends = [&](SequenceEnd end) { return stats.finished[static_cast<size_t>(end)]; };
  EXPECT_GT(stats.preemptions, 1000);
  EXPECT_GT(stats.evictions, 1000);
  EXPECT_GT(stats.page_copies, 1000);
  EXPECT_GT(stats.wasted_slots, 1000);
  EXPECT_GT(stats.rejected_queue_full, 100);
  EXPECT_GT(stats.rejected_deadline, 100);
  EXPECT_GT(tally.adoptions, 10);
  EXPECT_GT(tally.reencoded, 100);
  EXPECT_GT(tally.refused_pins, 100);
  EXPECT_GT(tally.expired_pins, 100);
  EXPECT_GT(tally.settled, 100);
  EXPECT_GT(tally.cached_on_arrival, 1000);
  for (const SequenceEnd end :
       {SequenceEnd::kListener, SequenceEnd::kStopToken, SequenceEnd::kLength,
        SequenceEnd::kDeadline, SequenceEnd::kCancelled, SequenceEnd::kStalled}) {
    EXPECT_GT(ends(end), 100) << SequenceEndName(end);
  }
  EXPECT_GT(ends(SequenceEnd::kDrained), 0);
  EXPECT_EQ(tally.moved > 0, num_devices > 1);
}

INSTANTIATE_TEST_SUITE_P(OnDevices, SchedulerRandom, ::testing::Values(1, 2, 3),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace photon
