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

struct SequenceRequest {
  std::vector<TokenId> prompt;  // may be empty: generation starts from the model's start latent
  int max_tokens = 1;           // at least 1; the sequence never generates more
  GenerationMode mode = GenerationMode::kExact;
  Sampling sampling;
  TimePoint deadline = TimePoint::max();
};

// Why a sequence ended.
enum class SequenceEnd : uint8_t {
  kListener,      // its listener wanted no more
  kLength,        // max_tokens were generated
  kDeadline,      // its deadline passed, waiting or running
  kCancelled,     // Scheduler::Cancel
  kDrained,       // the drain's deadline passed
  kEngineFailed,  // the engine failed; the scheduler is dead
};
inline constexpr int kNumSequenceEnds = 6;

// "listener", "length", ...
std::string_view SequenceEndName(SequenceEnd end);

struct SequenceStats {
  int prompt_tokens = 0;
  int cached_tokens = 0;     // of the prompt, found in the cache
  int generated_tokens = 0;  // that the listener accepted
  int steps = 0;             // that the sequence took part in
  TimePoint submitted;
  std::optional<TimePoint> first_step;   // absent: it never ran
  std::optional<TimePoint> first_token;  // absent: it generated nothing
  TimePoint finished;
};

// Hears one sequence. Calls come one at a time, from the thread that runs steps or from one that
// the engine runs inside a step: a listener must not block, and must not call the scheduler.
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
