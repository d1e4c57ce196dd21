// The scheduler's records of a sequence and of a device. Internal to scheduler/.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "scheduler/scheduler.h"

namespace photon {

// What every step looks at comes first, close together: between two steps of many rows most of the
// time goes into waiting for it to come from memory.
struct Scheduler::Sequence {
  SequenceId id{};
  bool running = false;            // rather than waiting
  bool leaving = false;            // the engine is done with it; the listener may not be yet
  std::optional<SequenceEnd> end;  // once it is decided
  // In the step that is computed now.
  bool in_step = false;
  bool exhausted = false;          // the engine's thread: the output ended with the last sampled
  std::atomic<bool> stop = false;  // its row wants no more. Any thread
  // Of `tokens`, those whose place in the cache is what a prefill would give. All of them, but for
  // kRecGen.
  int shareable_tokens = 0;
  std::vector<TokenId> tokens;      // prompt and output, as of the last step
  std::vector<TokenId> sampled;     // the engine's thread, until the step ends
  std::optional<TimePoint> paused;  // since when
  // Where the sequence runs; that of one which only fills the cache is known from the beginning.
  Device* device = nullptr;
  PageTable table;                             // open while the sequence is running
  std::unique_ptr<SequenceListener> listener;  // until it has heard the end
  SequenceStats stats;                         // as the listener heard it
  SequenceRequest request;                     // the prompt has moved to `tokens`
  int64_t waiting_cost = 0;                    // while it does not run: what is left to do
  std::optional<ComingPrefix> waits_for;       // that another sequence prefills

  bool is_pin() const { return request.pin_until.has_value(); }
  bool is_probe() const { return request.probed_device.has_value(); }
  // Runs on `device` and nowhere else.
  bool is_bound() const { return is_pin() || is_probe(); }
  int num_tokens() const { return static_cast<int>(tokens.size()); }
  int num_generated() const { return num_tokens() - stats.prompt_tokens; }
  int max_tokens_total() const { return stats.prompt_tokens + request.max_tokens; }
};

// On an engine's thread: decides where a row's output ends, and passes its tokens on.
class Scheduler::StepSink : public TokenSink {
 public:
  explicit StepSink(Device* device) : device_(device) {}

  bool OnTokens(int row, std::span<const SampledToken> tokens) override;
  void OnSlotEnd() override;

 private:
  Device* const device_;
};

// An engine, and what is there.
struct Scheduler::Device {
  Device(int index, Engine* engine, const Clock* clock, StepSignal* signal, int max_pinned_percent)
      : index(index),
        shape(engine->shape()),
        max_pinned_pages(static_cast<int>(int64_t{shape.num_pages} * max_pinned_percent / 100)),
        pool(shape),
        sink(this),
        thread(engine, clock, signal) {}

  const int index;  // in devices_
  const EngineShape shape;
  const int max_pinned_pages;
  LatentPool pool;
  std::vector<std::unique_ptr<Sequence>> running;  // in turn, tenants aside
  Step step;                                       // being planned or computed
  bool computing = false;
  TokenBatch published;                 // by the step that is computed, or by the one before
  size_t num_delivered = 0;             // of its events
  std::vector<Sequence*> published_by;  // of the one before
  TimePoint last_step_begin = TimePoint::min();
  std::optional<TimePoint> last_step_end;  // while the engine is wanted
  StepSink sink;
  StepThread thread;  // the last member: it uses the engine
};

}  // namespace photon
