// What a sequence asks of the scheduler, and what it hears back.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/types.h"
#include "scheduler/clock.h"

namespace photon {

// Unique for the life of a Scheduler.
enum class SequenceId : int64_t {};

// Cached tokens that are kept; unique for the life of a Scheduler.
enum class PinId : int64_t {};

// Whose work a sequence is. Tenants share the engine fairly, and nothing else: what is cached for
// one is never used for another.
enum class TenantId : uint64_t {};

// A higher class goes first, always; within a class tenants take turns.
enum class Priority : uint8_t { kLow, kNormal, kHigh };
inline constexpr int kNumPriorities = 3;

struct SequenceRequest {
  std::vector<TokenId> prompt;  // may be empty: generation starts from the model's start latent
  // At least 1; the sequence never generates more. 0 with `pin_until`.
  int max_tokens = 1;
  GenerationMode mode = GenerationMode::kExact;
  Sampling sampling;
  std::vector<TokenId> stop_tokens;  // the output ends with the first of them
  TimePoint deadline = TimePoint::max();
  TenantId tenant{};
  Priority priority = Priority::kNormal;
  // Present: only the cache is filled with the prompt, whose whole meta-contexts are then kept
  // until this time or Scheduler::Unpin, whichever comes first; SequenceStats::pin names them.
  std::optional<TimePoint> pin_until;
  // Present: the server's own, to see whether the engine of this device answers, one of
  // SchedulerStats::devices. In no statistics but those of pages.
  std::optional<int> probed_device;
};

// Why a sequence ended.
enum class SequenceEnd : uint8_t {
  kListener,      // its listener wanted no more
  kStopToken,     // one of stop_tokens came, and the listener did not end there
  kLength,        // max_tokens were generated; with pin_until: the cache is filled
  kDeadline,      // its deadline passed, waiting or running
  kCancelled,     // Scheduler::Cancel
  kStalled,       // paused for longer than SchedulerOptions::max_pause
  kDrained,       // the drain's deadline passed
  kEngineFailed,  // the engine failed; the scheduler is dead
};
inline constexpr int kNumSequenceEnds = 8;

// "listener", "length", ...
std::string_view SequenceEndName(SequenceEnd end);

struct SequenceStats {
  int prompt_tokens = 0;
  int cached_tokens = 0;     // of the prompt, found in the cache
  int generated_tokens = 0;  // that the listener accepted
  int steps = 0;             // that the sequence took part in
  int preemptions = 0;       // how often it lost its pages and had to get them again
  // Generated tokens of a kRecGen sequence whose place in the cache was computed from the tokens
  // after a preemption: the output from there on is not what an undisturbed run would have given.
  int reencoded_tokens = 0;
  std::optional<PinId> pin;  // of a request with pin_until that ended with kLength
  TimePoint submitted;
  std::optional<TimePoint> first_step;   // absent: it never ran
  std::optional<TimePoint> first_token;  // absent: it generated nothing
  TimePoint finished;
};

// Hears one sequence. Calls come one at a time, from the thread that runs steps: a listener must
// not block. It may call what the scheduler offers to any thread.
class SequenceListener {
 public:
  virtual ~SequenceListener() = default;

  // The next tokens, at least one. Returns nothing to go on, or how many of these tokens belong to
  // the output, which ends there.
  virtual std::optional<size_t> OnTokens(std::span<const SampledToken> tokens) = 0;

  // The last call, made exactly once. The listener is destroyed after it.
  virtual void OnFinish(SequenceEnd end, const SequenceStats& stats) = 0;
};

}  // namespace photon
