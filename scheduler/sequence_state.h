// The scheduler's record of a sequence. Internal to scheduler/.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "scheduler/scheduler.h"

namespace photon {

struct Scheduler::Sequence {
  SequenceId id{};
  SequenceRequest request;                     // the prompt has moved to `tokens`
  std::unique_ptr<SequenceListener> listener;  // until it has heard the end
  std::vector<TokenId> tokens;                 // prompt and output, as of the last step
  bool running = false;                        // rather than waiting
  PageTable table;                             // open while the sequence is running
  int64_t waiting_cost = 0;                    // while it is not: what is left to do
  SequenceStats stats;                         // as the listener heard it
  // Of `tokens`, those whose place in the cache is what a prefill would give. All of them, but for
  // kRecGen.
  int shareable_tokens = 0;
  std::optional<SequenceEnd> end;       // once it is decided
  bool leaving = false;                 // the engine is done with it; the listener may not be yet
  std::optional<TimePoint> paused;      // since when
  std::optional<SequenceId> waits_for;  // a sequence that prefills what this one needs
  int waits_until_cached = 0;           // tokens of it

  // In the step that is computed now.
  bool in_step = false;
  std::atomic<bool> stop = false;  // its row wants no more. Any thread
  std::vector<TokenId> sampled;    // the engine's thread, until the step ends
  bool exhausted = false;          // likewise: the output ended with the last of them

  bool is_pin() const { return request.pin_until.has_value(); }
  int num_tokens() const { return static_cast<int>(tokens.size()); }
  int num_generated() const { return num_tokens() - stats.prompt_tokens; }
  int max_tokens_total() const { return stats.prompt_tokens + request.max_tokens; }
};

}  // namespace photon
