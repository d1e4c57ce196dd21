// The seam between scheduling and computing.
//
// Scheduling decides which sequences advance and which pages they own. An engine computes: it
// extends the latent cache by prompt tokens (hierarchical prefill) and generates the next tokens
// (recursive decode). It knows nothing of requests, clients, text or clocks.
//
// The unit of work is a *step*: every row decodes to the next meta-context boundary, so host work
// is paid once per meta-context (P_L tokens, 16 at 4 x 4). Between steps a sequence is nothing but
// its token ids and its pages.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/types.h"

namespace photon {

// Most alternatives that a row may ask for per token.
inline constexpr int kMaxTopLogprobs = 20;

// How a row draws its tokens. Filters apply in the order written here, each to what the one before
// left: temperature, top_k, top_p, min_p. A draw depends on (seed, query, sample, position) alone,
// so a row's tokens are the same alone or in a crowd, and before or after a preemption.
struct Sampling {
  float temperature = 1.0f;  // >= 0; 0 is greedy: the most probable token, the lowest id on a tie
  int top_k = 0;             // keep the k most probable tokens; 0 keeps all
  float top_p = 1.0f;        // in (0, 1]: keep the fewest tokens whose probabilities reach top_p
  float min_p = 0.0f;        // in [0, 1]: drop tokens below min_p times the largest probability
  uint64_t seed = 0;
  uint32_t query = 0;    // index of the question within its request
  uint32_t sample = 0;   // index of the sample within its question
  int top_logprobs = 0;  // alternatives reported per token, 0 .. kMaxTopLogprobs
};

// One sequence's part in a step. Spans are borrowed until Step() returns.
struct Row {
  // Tokens that `pages` already hold: a multiple of meta_tokens. A row without whole meta-contexts
  // of input decodes on from its last page's top state, of which a page keeps one: the cached
  // tokens must end with the newest ones written there. To start from an earlier boundary of a
  // page, give the meta-context before that boundary again as input.
  int cached_tokens = 0;
  // The tokens after them. Whole meta-contexts extend the cache. A shorter tail is *forced*:
  // decoding starts with those tokens in their slots. Without `decode` there may be no tail.
  std::span<const TokenId> input;
  // Cover cached tokens, whole meta-contexts of input and, with `decode`, the meta-context decoded.
  // What follows is not looked at. The row *writes* the pages of all but the cached tokens, and
  // *reads* the others.
  std::span<const PageId> pages;
  // False: only extend the cache.
  bool decode = true;
  // A meta-context that starts with forced tokens decodes in kExact whatever this says. kExact and
  // kHierGen leave in the pages what the same tokens given as input leave, so their sequences can
  // be rebuilt from tokens. kRecGen leaves its predictions, of the top level alone: such pages
  // stand for no tokens but their own sequence's, and where a level below the top is `global` only
  // kRecGen without whole meta-contexts of input may go on from them.
  GenerationMode mode = GenerationMode::kExact;
  Sampling sampling;
  // Empty, or [meta_tokens, vocab_size]: receives the logits of every slot decoded, forced ones
  // included. For tests and evaluation; costs a copy per slot.
  std::span<float> logits;
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob =
      0;  // natural logarithm, of the model's distribution before temperature and filters
};

struct SampledToken {
  TokenId token = 0;
  float logprob = 0;                  // as in TokenLogprob
  std::span<const TokenLogprob> top;  // the most probable first; valid during the call
};

// Receives tokens while a step runs, so that streams flow inside a step.
class TokenSink {
 public:
  virtual ~TokenSink() = default;

  // The next tokens of rows[row], consecutive and in text order; forced tokens are not reported.
  // Returns false when the row wants no more. The engine may then leave out the row's remaining
  // slots, does not report them, and does not extend its cache by this meta-context. Called on the
  // thread that called Step(), or on one engine thread; must not block.
  virtual bool OnTokens(int row, std::span<const SampledToken> tokens) = 0;

  // All rows' tokens of a slot, or of several that end together, were reported, and may be passed
  // on together. At a step's end there may be no call.
  virtual void OnSlotEnd() {}
};

// Copy-on-write: the content of `from` is written over `to`, both inside one engine.
struct PageCopy {
  PageId from{};
  PageId to{};
};

// What an engine is; constant for its life.
struct EngineShape {
  std::string device;  // for people: "cpu (avx512_bf16, 2 threads)"
  int vocab_size = 0;
  int meta_tokens = 0;  // P_L, tokens per meta-context and step
  int max_context = 0;  // tokens of one sequence, prompt and output
  int page_tokens = 0;  // a multiple of meta_tokens
  int num_pages = 0;    // PageIds run from 0 to num_pages - 1; who owns which is up to the caller
  int64_t page_bytes = 0;
  int max_rows = 0;            // rows of one step
  int max_prefill_tokens = 0;  // whole-meta-context input tokens of one step, summed over its rows
  std::vector<GenerationMode> modes;  // those that the checkpoint allows
};

class Engine {
 public:
  virtual ~Engine() = default;

  virtual const EngineShape& shape() const = 0;

  // First makes all of `copies`, then extends each row's pages by its whole meta-contexts of input,
  // then decodes rows that want it to the next boundary and extends their pages by what they
  // decoded.
  //
  // Copies happen as if at once: no page is the target of two, or both a target and a source. They
  // see pages as they were before the step, whatever its rows write, and its rows see them done.
  // A page that a row writes occurs once among the pages that the step's rows write and read. Any
  // number of rows may read one page.
  //
  // kInvalidArgument: `copies` or a row break these rules or shape(); nothing was done. What rows
  // only read may go unchecked, see StepValidator.
  // kInternal: the device failed; all pages are lost.
  // Called by one thread at a time.
  virtual absl::Status Step(std::span<const PageCopy> copies, std::span<const Row> rows,
                            TokenSink& sink) = 0;
};

}  // namespace photon
