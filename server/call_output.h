// What a call has to say: the samples of its queries as tagged messages, on their way to the wire.
//
// A sequence's output waits in one message of its own, which grows while others are written: a slow
// reader gets fewer and larger messages. When it grows beyond the high-water mark, the sequence is
// to pause until it has been written. Sequences that have something to say take turns.
//
// Knows no threads and no gRPC. For one thread at a time.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "photon/v1/generation.pb.h"
#include "scheduler/sequence.h"
#include "server/generation_output.h"
#include "server/generation_request.h"
#include "server/integrator.h"

namespace photon {

// Index into the sequences of a call: the samples of its first query, then those of the next.
using SequenceIndex = size_t;

class CallOutput {
 public:
  struct Message {
    size_t query = 0;
    std::optional<SequenceIndex> sequence;  // whose it is; absent: the query's as a whole
    v1::GenerateResponse output;            // if `error` is OK
    absl::Status error;                     // why the query failed alone
  };

  // Sums over sequences that have ended.
  struct Totals {
    int64_t prompt_tokens = 0;
    int64_t cached_tokens = 0;
    int64_t generated_tokens = 0;
  };

  // Queries with an error get a message that says so, and no sequences. The sequences share
  // `max_unread_bytes` equally as their high-water marks.
  CallOutput(std::vector<absl::StatusOr<Query>> queries, const Tokenizer& tokenizer,
             int64_t max_unread_bytes);

  // What to submit, in order; once.
  std::vector<SequenceRequest> TakeRequests();
  size_t num_sequences() const { return sequences_.size(); }

  // --- From the scheduler ---

  struct Appended {
    std::optional<size_t> end;  // as SequenceListener::OnTokens
    bool pause = false;         // the sequence has just crossed its mark
  };
  Appended Append(SequenceIndex index, std::span<const SampledToken> tokens);

  // True: its query has ended samples to integrate and no run that does so; see BeginIntegration.
  bool Finish(SequenceIndex index, SequenceEnd end, const SequenceStats& stats);

  // --- Integration, which may be slow and needs nothing of this class while it runs ---

  // Samples of the query of sequence `index` that wait to be integrated, at least one, and the
  // integrator that is the run's alone until EndIntegration.
  struct Integration {
    size_t query = 0;
    std::vector<EndedSample> samples;
    Integrator* integrator = nullptr;
  };
  Integration BeginIntegration(SequenceIndex index);

  struct Integrated {
    std::vector<SequenceIndex> withdrawn;  // to be cancelled: the query is decided
    bool again = false;                    // more samples have ended
  };
  Integrated EndIntegration(size_t query);

  // --- To the wire ---

  std::optional<Message> Next();

  // The message of a sequence has been written. True: the sequence had paused and may go on.
  bool Written(SequenceIndex index);

  // Everything has ended and Next() has nothing more.
  bool complete() const;

  // What became of the call as a whole: the first failure that is not one query's alone.
  absl::Status status() const;

  bool finished(SequenceIndex index) const { return sequences_[index].finished; }
  bool paused(SequenceIndex index) const { return sequences_[index].paused; }
  bool withdrawn(SequenceIndex index) const { return sequences_[index].withdrawn; }

  const Totals& totals() const { return totals_; }
  // Of the sequence that ended last.
  const std::optional<v1::GenerationResult>& last_result() const { return last_result_; }

 private:
  struct Sequence {
    size_t query = 0;
    int sample = 0;
    SequenceRequest request;  // until TakeRequests
    int max_tokens = 0;
    GenerationOutput output;
    v1::GenerateResponse pending;
    bool ready = false;  // stands in ready_
    bool paused = false;
    bool withdrawn = false;  // nothing more of it is wanted
    bool finished = false;
    // For the integrator:
    std::string text;
    double logprob_sum = 0;
  };
  struct QueryState {
    absl::Status error;
    bool omit_samples = false;
    SequenceIndex first = 0;  // its samples are first .. first + n - 1
    int n = 0;
    std::optional<Integrator> integrator;
    std::vector<EndedSample> ended;  // not integrated yet
    bool integrating = false;
  };

  // Who has something to say: a sequence, or a query as a whole. A query's turn comes after those
  // of its sequences, because it is taken when they have ended.
  struct Turn {
    size_t query = 0;
    std::optional<SequenceIndex> sequence;
  };

  void MakeReady(SequenceIndex index);
  int64_t UnreadBytes(const v1::GenerateResponse& message) const;

  std::vector<Sequence> sequences_;
  std::vector<QueryState> queries_;
  int64_t high_water_bytes_;
  std::deque<Turn> ready_;
  size_t num_unfinished_ = 0;    // sequences
  size_t num_unintegrated_ = 0;  // queries
  absl::Status failure_;
  bool drained_ = false;
  Totals totals_;
  std::optional<v1::GenerationResult> last_result_;
};

}  // namespace photon
