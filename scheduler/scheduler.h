// Continuous batching over one engine, or over several that hold the same model.
//
// A step decodes every running sequence to its next meta-context boundary. Sequences join and leave
// between steps:
//
//   Submit --> inbox --> waiting --admission--> running --> ended
//               |           ^                     |   |
//       bounded, any thread +---- preemption -----+   +-- paused: keeps its pages, skips steps
//
// Admission reserves the pages that a sequence can need at most, a closed form of its length less
// what it shares, or leaves it waiting: by default a running sequence never waits for memory.
//
// Turns, in admission and within a step: higher priorities first; then the tenant for whom the
// least was done (TenantShares); then the earliest deadline; then first come, first served. The
// sequence whose turn it is to be admitted is not overtaken for want of memory, so a large one is
// not starved by small ones.
//
// Prompts are prefilled in pieces under the engine's budget of prefill tokens per step, in the same
// steps that decode the others: a long prompt does not stall a stream. A prompt that begins like
// one that is being prefilled waits for that and then takes its pages.
//
// Each engine computes on a thread of its own (StepThread), one step after the other, whatever the
// other engines do. Meanwhile the thread that called RunStep hands tokens to the listeners, takes
// in what was submitted and admits for the next steps.
//
// With several engines, all that is above holds for all of them together: there is one queue, one
// account of each tenant, one order of turns. An engine and its pool are a device; a sequence runs
// on one, where the least work is ahead of it: what runs there, and what of its prompt is not in
// the cache there. A sequence that waits for memory holds up one device, not all.
//
// Policy is integer arithmetic on EngineShape. This folder knows no tensors, no text and no
// network.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "scheduler/clock.h"
#include "scheduler/latent_pool.h"
#include "scheduler/sequence.h"
#include "scheduler/step_thread.h"
#include "scheduler/tenant_shares.h"

namespace photon {

struct SchedulerOptions {
  int max_queue = 1024;  // sequences submitted and not yet running; more are refused
  // Share of a sequence's max_tokens for which admission reserves pages. At 100 no sequence ever
  // waits for memory once it runs. Below, the pool is over-committed: when it runs out, sequences
  // are preempted.
  int reserved_output_percent = 100;
  // A tenant that holds less than its fair share of pages or rows takes them from tenants above
  // theirs, whose newest sequences are preempted or skip steps.
  bool preempt_for_fairness = true;
  // Share of each device's pool that pins may hold.
  int max_pinned_percent = 50;
  Duration max_pause = std::chrono::seconds(30);  // a sequence paused for longer ends
};

// What a device holds now.
struct DeviceStats {
  int num_running = 0;  // sequences that hold pages
  int num_paused = 0;   // of them
  // Every page is in one of these states.
  int pages_free = 0;
  int pages_in_use = 0;  // held by running sequences, alone or together
  int pages_cached = 0;  // held by the prefix index alone; evicted as pages are needed
  int pages_pinned = 0;  // kept by pins, and not in use now
  int num_pages = 0;
  int num_pins = 0;

  DeviceStats& operator+=(const DeviceStats& other);
};

// What the scheduler holds and has done, on all devices together; gauges first, then counters since
// its creation.
struct SchedulerStats : DeviceStats {
  int num_waiting = 0;
  std::vector<DeviceStats> devices;

  int64_t steps = 0;
  int64_t step_rows = 0;      // summed over steps
  int64_t prompt_tokens = 0;  // of sequences that began to run
  int64_t prompt_tokens_cached = 0;
  int64_t generated_tokens = 0;
  int64_t wasted_slots = 0;  // decoded after a row's output had ended inside a meta-context
  int64_t page_copies = 0;   // of partial pages, copied on write
  int64_t evictions = 0;     // pages that the prefix index gave up
  int64_t preemptions = 0;
  int64_t rejected_queue_full = 0;
  int64_t rejected_deadline = 0;                        // could not have begun to answer in time
  std::array<int64_t, kNumSequenceEnds> finished = {};  // by SequenceEnd
  Duration step_time{};                                 // spent in Engine::Step
  // An engine stood still though it had work: from a step's end to the next one's begin.
  Duration host_time{};
  Duration recent_step_time{};  // of a step, averaged over the last ones; 0 before the first
};

// What a sequence would take, and when it would begin.
struct CostEstimate {
  int pages = 0;             // at most, were nothing shared
  bool fits = false;         // it can ever run
  bool fits_now = false;     // it would begin in the next step
  Duration expected_wait{};  // until it begins; from the work queued and the recent speed
};

// Most tokens, prompt and output together, that a sequence may have: whole meta-contexts of the
// engine's context.
int MaxSequenceTokens(const EngineShape& shape);

class Scheduler {
 public:
  struct Submission {
    SequenceRequest request;
    std::unique_ptr<SequenceListener> listener;
  };

  // The engines, at least one, and `clock` outlive the scheduler, which alone steps them. Their
  // shapes differ in `device` and `num_pages` at most. kInvalidArgument: their shapes or the
  // options make no sense; the message has every problem.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Create(std::span<Engine* const> engines,
                                                           const Clock* clock,
                                                           const SchedulerOptions& options);
  static absl::StatusOr<std::unique_ptr<Scheduler>> Create(Engine* engine, const Clock* clock,
                                                           const SchedulerOptions& options) {
    return Create(std::span(&engine, 1), clock, options);
  }

  // Ends what is left with kCancelled.
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // --- Any thread ---

  // Queues a sequence. On an error the listener is destroyed and hears nothing.
  // kInvalidArgument: the sequence could never run; the message names the field and the limit.
  // kResourceExhausted: the queue is full, or pins hold all that they may. kUnavailable: draining,
  // or the engine failed. kDeadlineExceeded: the deadline has passed.
  absl::StatusOr<SequenceId> Submit(SequenceRequest request,
                                    std::unique_ptr<SequenceListener> listener);

  // Queues all of them, in this order, or none; errors as above, of the first that has one.
  // Sequences that begin alike compute what they share once, whether they come together or apart.
  absl::StatusOr<std::vector<SequenceId>> SubmitAll(std::vector<Submission> submissions);

  // Ends a sequence before the next step. Sequences that have ended are ignored, here and below.
  void Cancel(SequenceId id);

  // Leaves a sequence out of the steps from the next one on, with its pages, until Resume. For
  // readers that do not keep up: up to two more steps' tokens may still come. After max_pause it
  // ends with kStalled.
  void Pause(SequenceId id);
  void Resume(SequenceId id);

  // Moves the time until which a pin holds; one in the past ends it. Unknown pins are ignored.
  void ExtendPin(PinId pin, TimePoint until);
  void Unpin(PinId pin);

  // Refuses new sequences from now on. What is queued or running goes on until `deadline` and then
  // ends with kDrained. A second call moves the deadline.
  void Drain(TimePoint deadline);

  // Whether a request could be submitted at all; as Submit's kInvalidArgument.
  absl::Status CheckFits(const SequenceRequest& request) const;

  // For a sequence of so many tokens, were it submitted now.
  CostEstimate Estimate(int prompt_tokens, int max_tokens) const;

  // What was done as of the last step's end, what is held as of the last one's begin.
  SchedulerStats stats() const;
  int num_devices() const { return static_cast<int>(devices_.size()); }

  // --- The thread that runs steps ---

  // Blocks until RunStep has something to do. False: it never will again, because the scheduler has
  // drained or its engine failed.
  bool WaitForWork();

  // One step: takes in what was submitted and cancelled, ends what is overdue, admits, and steps
  // the engine. Listeners hear the tokens while the step runs, and those of its last slots during
  // the next one: RunStep without work delivers what is left. Of several engines, those that stand
  // still begin a step, and RunStep returns when one has ended its own, or when one stands still
  // and there is news for it. On an error of an engine every sequence ends with kEngineFailed, and
  // the scheduler refuses work from then on.
  absl::Status RunStep();

  // Delivers what the last step left over, instead of during the next one.
  void Flush();

  // Aborts unless sequences, pages, pins and accounts add up. For tests: looks at everything.
  void CheckInvariants() const;

 private:
  struct Sequence;
  struct Device;
  class StepSink;

  // What is done with sequences and pins from other threads.
  struct Command {
    enum class Kind : uint8_t { kCancel, kPause, kResume, kMovePin };
    Kind kind{};
    SequenceId sequence{};
    PinId pin{};
    TimePoint until;
  };
  struct LaneKey {
    Priority priority{};
    TenantId tenant{};
    bool operator<(const LaneKey& other) const {
      return std::tie(other.priority, tenant) < std::tie(priority, other.tenant);
    }
  };
  // The sequences of one tenant and priority that wait, in turn.
  using Turn = std::pair<TimePoint, SequenceId>;  // deadline, then order of arrival
  using Lane = std::map<Turn, std::unique_ptr<Sequence>>;
  struct Pin {
    TimePoint until;
    int pages = 0;
    Device* device = nullptr;
  };
  struct Step {
    std::vector<PageCopy> copies;
    std::vector<Row> rows;
    std::vector<Sequence*> sequences;  // whose rows they are
    int64_t cost = 0;
  };
  // How crowded it is; counted afresh for each round of admissions.
  struct Occupancy {
    struct OfDevice {
      std::array<int, kNumPriorities> by_priority = {};
      int rows = 0;  // summed over it
      std::vector<const Sequence*> prefilling;
      int64_t work = 0;      // that is left of its sequences
      bool claimed = false;  // what its memory is for waits for more of it
    };
    std::vector<OfDevice> devices;
    std::map<TenantId, int> by_tenant;
  };
  // A sequence that caches what another one needs.
  struct ComingPrefix {
    SequenceId sequence{};
    int tokens = 0;
  };
  // A device for a sequence.
  struct Choice {
    Device* device = nullptr;
    bool has_row = false;  // nobody skips steps for it
    int64_t work = 0;      // ahead of it
    std::optional<ComingPrefix> coming;
  };

  Scheduler(std::span<Engine* const> engines, const Clock* clock, const SchedulerOptions& options);

  // scheduler.cc: the step.
  absl::Status AwaitStep(bool watch_inbox);
  std::optional<StepResult> Follow(Device& device);
  absl::Status EndStep(Device& device, const StepResult& result);
  absl::Status Commit(Device& device, const StepResult& result);
  void CommitPin(Sequence& sequence);

  // scheduler_inbox.cc: what comes from other threads.
  void Send(const Command& command);
  void TakeInbox();
  void Obey(const Command& command);

  // scheduler_ends.cc: what listeners hear, and how things end.
  void Deliver(Device& device, const std::vector<Sequence*>& sequences, bool until_a_step_ends);
  void DeliverLeftOver();
  void EndOverdue(TimePoint now);
  TimePoint StallTime(const Sequence& sequence) const;
  Duration FastestStep() const;
  bool CanAnswer(const Sequence& sequence, TimePoint now) const;
  int CountCached(const Sequence& sequence) const;
  TimePoint NextDeadline() const;
  void Finish(Sequence& sequence, SequenceEnd end);
  void End(Sequence& sequence, SequenceEnd end);
  void Unlist(Sequence& sequence);
  void Forget(Sequence& sequence);
  void EndEverything(SequenceEnd end);
  bool RemoveEnded();
  void RemovePin(PinId pin);

  // scheduler_stats.cc: what it says of itself.
  void PublishStats();
  void PublishCounters();

  // scheduler_planning.cc: whose turn it is.
  void Enqueue(std::unique_ptr<Sequence> sequence);
  std::unique_ptr<Sequence> Dequeue(Sequence& sequence);
  void Admit();
  Occupancy CountOccupancy() const;
  bool HasRoom(const Occupancy& occupancy, const Device& device, const Sequence& sequence) const;
  bool CountChoices(const Occupancy& occupancy, const Sequence& sequence);
  bool WaitsForPrefix(const Occupancy& occupancy, Sequence& sequence);
  std::optional<ComingPrefix> FindPrefilling(const Occupancy& occupancy, const Device& device,
                                             const Sequence& sequence, int cached) const;
  static bool WillCache(const Sequence& sequence, int tokens);
  bool OpenTable(Sequence& sequence);
  bool Claim(Occupancy& occupancy, const Sequence& sequence) const;
  bool IsBlockedByPins(const Device& device, const Sequence& sequence, int tokens) const;
  bool MakeRoom(Device& device, const Sequence& sequence);
  void CloseTable(Sequence& sequence);
  void Preempt(Sequence& sequence);
  void StartStep(Device& device, TimePoint now);
  void PlanStep(Device& device, TimePoint now);
  bool PlanRow(Sequence& sequence, int& prefill_budget, TimePoint now);
  bool GrowTable(Sequence& sequence, int tokens);
  int ReservedTokens(const Sequence& sequence) const;
  int64_t CostLeft(const Sequence& sequence) const;
  int StepsToFirstToken(int uncached) const;

  const Clock* const clock_;
  const SchedulerOptions options_;
  EngineShape shape_;  // of each engine; with the pages of the largest pool

  // The thread that runs steps.
  StepSignal signal_;  // a step has got on, or there is news that an engine waits for
  std::vector<std::unique_ptr<Device>> devices_;
  TenantShares shares_;
  std::map<LaneKey, Lane> waiting_;
  std::unordered_map<SequenceId, Sequence*> by_id_;  // waiting and running
  std::set<Turn> deadlines_;                         // of those that have one
  std::set<Turn> stalls_;                            // when those that are paused end
  std::map<PinId, Pin> pins_;
  int64_t next_pin_ = 1;
  std::vector<Choice> choices_;  // of the sequence that is to be admitted, the best first
  std::vector<std::unique_ptr<Sequence>> ended_;  // until nothing points at them any more
  SchedulerStats counters_;
  int num_waiting_ = 0;
  int num_queued_ = 0;        // of them, never run
  int64_t waiting_cost_ = 0;  // of all that wait
  int64_t recent_step_cost_ = 0;
  std::array<Duration, 8> last_step_times_ = {};  // a ring; 0: none yet
  bool idle_ = true;                              // the last RunStep had nothing to do

  mutable std::mutex mutex_;
  std::condition_variable inbox_changed_;
  std::vector<std::unique_ptr<Sequence>> arrivals_ ABSL_GUARDED_BY(mutex_);
  std::vector<Command> commands_ ABSL_GUARDED_BY(mutex_);
  TimePoint drain_deadline_ ABSL_GUARDED_BY(mutex_) = TimePoint::max();
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  // By device: of pins and those to come, what they share counted twice.
  std::vector<int> pinned_pages_ ABSL_GUARDED_BY(mutex_);
  bool watches_inbox_ ABSL_GUARDED_BY(mutex_) =
      false;  // an engine stands still: news raise signal_
  int64_t rejected_queue_full_ ABSL_GUARDED_BY(mutex_) = 0;
  int queued_ ABSL_GUARDED_BY(mutex_) = 0;  // num_queued_ as of the last step
  SchedulerStats published_ ABSL_GUARDED_BY(mutex_);
  // For Estimate, as of the last step.
  struct Load {
    struct OfDevice {
      int available_pages = 0;
      int free_rows = 0;
    };
    std::vector<OfDevice> devices;
    int64_t waiting_cost = 0;
    int64_t step_cost = 0;
    int steps_to_next_end = 0;  // at most, of the running sequence that ends first
  };
  Load load_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace photon
