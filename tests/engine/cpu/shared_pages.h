// Sequences that share a pool's pages as a scheduler shares them, and what each would be alone.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "tests/engine/cpu/engine_fixtures.h"

namespace photon {

// One meta-context's worth of output, everything that a sink and a row can see.
struct Decoded {
  int first_token = 0;  // position of the meta-context
  int num_given = 0;    // tokens of the sequence before this step
  GenerationMode mode = GenerationMode::kExact;
  Sampling sampling;
  bool want_logits = false;
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<TokenLogprob>> tops;
  std::vector<float> logits;
};

// A sequence in a shared pool. Its tokens are its own; its pages may be others' as well.
struct SharedSequence {
  GenerationMode mode = GenerationMode::kExact;
  Sampling sampling;
  bool want_logits = false;
  std::vector<TokenId> tokens;
  std::vector<PageId> pages;
  int cached_tokens = 0;
  bool has_run = true;  // false: a fork before its first step, from which nothing forks
  // Of its whole past, the time before a fork included.
  std::vector<Decoded> history;
};

class SharedPool {
 public:
  // Uses all pages of `engine`, in an order that `seed` shuffles.
  SharedPool(Engine& engine, uint64_t seed);

  // A fork at a boundary of `parent` that its pages hold: full pages by reference, a partial one
  // by a copy made in the next step. At an earlier boundary than the newest of its page, the
  // sequence gives the meta-context before the boundary again. `more` follows the boundary.
  SharedSequence Fork(const SharedSequence& parent, int boundary, std::span<const TokenId> more);
  // Gives up the pages; the sequence starts over from its tokens.
  void Release(SharedSequence& sequence);

  // What a sequence does in a step.
  struct Part {
    SharedSequence* sequence = nullptr;
    int prefill_metas =
        0;  // above 0: prefills as many meta-contexts, or what there are, and no more
    int stop_after = 1000;  // the sink ends the row after so many tokens, and they are lost
  };
  // One step of these sequences, with the copies that are due.
  void Step(std::span<const Part> parts);
  // One decoding step of all of these.
  void Decode(std::span<SharedSequence* const> sequences);

  bool CanDecode(const SharedSequence& sequence) const;
  int num_free() const { return static_cast<int>(free_.size()); }
  const EngineShape& shape() const { return shape_; }

 private:
  PageId Take();

  Engine& engine_;
  const EngineShape shape_;
  std::vector<PageId> free_;
  std::vector<int> references_;
  std::vector<PageCopy> copies_;      // due in the next step
  std::vector<PageId> copy_sources_;  // referenced until then
};

// Decodes the history again in `engine`, which the sequence has to itself, on pages of its own.
// Fails where anything differs in a bit.
void ExpectAsUnshared(Engine& engine, const SharedSequence& sequence);
// The same, but before each step the pages are given up and prefilled from the tokens.
void ExpectAsRebuiltFromTokens(Engine& engine, const SharedSequence& sequence);

}  // namespace photon
