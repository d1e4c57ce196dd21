#include "server/call_output.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace photon {
namespace {

// Less would make a message of every few tokens.
constexpr int64_t kMinHighWaterBytes = 1024;

bool EndedByItself(v1::FinishReason reason) {
  return reason == v1::FINISH_REASON_STOP_TOKEN || reason == v1::FINISH_REASON_STOP_STRING ||
         reason == v1::FINISH_REASON_LENGTH;
}

}  // namespace

CallOutput::CallOutput(std::vector<absl::StatusOr<Query>> queries, const Tokenizer& tokenizer,
                       int64_t max_unread_bytes) {
  queries_.resize(queries.size());
  for (size_t i = 0; i < queries.size(); ++i) {
    QueryState& state = queries_[i];
    state.first = sequences_.size();
    if (!queries[i].ok()) {
      state.error = queries[i].status();
      ready_.push_back({.query = i});
      continue;
    }
    Query& query = *queries[i];
    state.n = query.n;
    if (query.integration != nullptr) {
      state.integrator.emplace(query.integration, query.n);
      state.omit_samples = query.integration->omit_samples;
      ++num_unintegrated_;
    }
    const GenerationOutput output(query, tokenizer);
    for (int sample = 0; sample < query.n; ++sample) {
      query.sequence.sampling.sample = static_cast<uint32_t>(sample);
      const bool last = sample + 1 == query.n;
      sequences_.push_back({.query = i,
                            .sample = sample,
                            .request = last ? std::move(query.sequence) : query.sequence,
                            .output = output});
      sequences_.back().max_tokens = sequences_.back().request.max_tokens;
    }
  }
  num_unfinished_ = sequences_.size();
  const auto shares = static_cast<int64_t>(std::max<size_t>(sequences_.size(), 1));
  high_water_bytes_ = std::max(max_unread_bytes / shares, kMinHighWaterBytes);
}

std::vector<SequenceRequest> CallOutput::TakeRequests() {
  std::vector<SequenceRequest> requests;
  requests.reserve(sequences_.size());
  for (Sequence& sequence : sequences_) requests.push_back(std::move(sequence.request));
  return requests;
}

CallOutput::Appended CallOutput::Append(SequenceIndex index, std::span<const SampledToken> tokens) {
  Sequence& sequence = sequences_[index];
  const QueryState& query = queries_[sequence.query];
  if (sequence.withdrawn) return {.end = 0};
  const size_t text_before = sequence.pending.text().size();
  Appended appended{.end = sequence.output.Append(tokens, sequence.pending)};
  if (query.integrator.has_value()) {
    sequence.text.append(sequence.pending.text(), text_before);
    for (const SampledToken& token : tokens.first(appended.end.value_or(tokens.size()))) {
      sequence.logprob_sum += token.logprob;
    }
  }
  if (query.omit_samples) {
    sequence.pending.Clear();
    return appended;
  }
  // The end of the output comes with the result, in Finish().
  if (!appended.end.has_value()) MakeReady(index);
  if (!sequence.paused && !appended.end.has_value() &&
      UnreadBytes(sequence.pending) > high_water_bytes_) {
    sequence.paused = true;
    appended.pause = true;
  }
  return appended;
}

bool CallOutput::Finish(SequenceIndex index, SequenceEnd end, const SequenceStats& stats) {
  Sequence& sequence = sequences_[index];
  QueryState& query = queries_[sequence.query];
  const size_t text_before = sequence.pending.text().size();
  sequence.output.Finish(end, stats, sequence.pending);
  sequence.finished = true;
  --num_unfinished_;
  totals_.prompt_tokens += stats.prompt_tokens;
  totals_.cached_tokens += stats.cached_tokens;
  totals_.generated_tokens += stats.generated_tokens;
  last_result_ = sequence.pending.result();

  if (failure_.ok()) {
    if (end == SequenceEnd::kDeadline) {
      failure_ = absl::DeadlineExceededError("the deadline passed during generation");
    } else if (end == SequenceEnd::kCancelled && !sequence.withdrawn) {
      failure_ = absl::CancelledError("the request was cancelled");
    } else if (end == SequenceEnd::kStalled) {
      failure_ = absl::ResourceExhaustedError(
          absl::StrCat("the client does not read: more than ", high_water_bytes_,
                       " bytes of a sequence's output waited for too long"));
    } else if (end == SequenceEnd::kEngineFailed) {
      failure_ = absl::UnavailableError("the engine has failed");
    }
  }
  drained_ = drained_ || end == SequenceEnd::kDrained;

  bool integrate = false;
  if (query.integrator.has_value()) {
    sequence.text.append(sequence.pending.text(), text_before);
    const bool finished = EndedByItself(last_result_->finish_reason());
    query.ended.push_back(
        {.index = sequence.sample,
         .finished = finished,
         .text = std::move(sequence.text),
         .generated_tokens = stats.generated_tokens,
         .max_tokens = sequence.max_tokens,
         .mean_logprob = sequence.logprob_sum / std::max(stats.generated_tokens, 1)});
    integrate = !query.integrating;
    query.integrating = true;
  }
  if (query.omit_samples) {
    sequence.pending.Clear();
  } else {
    MakeReady(index);
  }
  return integrate;
}

CallOutput::Integration CallOutput::BeginIntegration(SequenceIndex index) {
  const size_t query = sequences_[index].query;
  return {.query = query,
          .samples = std::exchange(queries_[query].ended, {}),
          .integrator = &*queries_[query].integrator};
}

CallOutput::Integrated CallOutput::EndIntegration(size_t query_index) {
  QueryState& query = queries_[query_index];
  Integrated integrated;
  if (query.integrator->decided()) {
    for (SequenceIndex i = query.first; i < query.first + query.n; ++i) {
      if (sequences_[i].finished || sequences_[i].withdrawn) continue;
      sequences_[i].withdrawn = true;
      integrated.withdrawn.push_back(i);
    }
  }
  if (query.integrator->complete()) {
    ready_.push_back({.query = query_index});
    --num_unintegrated_;
  }
  integrated.again = !query.ended.empty();
  query.integrating = integrated.again;
  return integrated;
}

std::optional<CallOutput::Message> CallOutput::Next() {
  if (ready_.empty()) return std::nullopt;
  const Turn turn = ready_.front();
  ready_.pop_front();
  Message message{.query = turn.query, .sequence = turn.sequence};
  if (turn.sequence.has_value()) {
    Sequence& sequence = sequences_[*turn.sequence];
    sequence.ready = false;
    message.output.Swap(&sequence.pending);
    message.output.set_sample_index(sequence.sample);
  } else if (const QueryState& query = queries_[turn.query]; query.error.ok()) {
    *message.output.mutable_integration() = query.integrator->Result();
  } else {
    message.error = query.error;
  }
  return message;
}

bool CallOutput::Written(SequenceIndex index) {
  Sequence& sequence = sequences_[index];
  if (!sequence.paused || UnreadBytes(sequence.pending) > high_water_bytes_) return false;
  sequence.paused = false;
  return true;
}

bool CallOutput::complete() const {
  return num_unfinished_ == 0 && num_unintegrated_ == 0 && ready_.empty();
}

absl::Status CallOutput::status() const {
  if (!failure_.ok()) return failure_;
  // What was generated stands, as partial output.
  if (drained_ && totals_.generated_tokens == 0) {
    return absl::UnavailableError("the server is draining");
  }
  return absl::OkStatus();
}

void CallOutput::MakeReady(SequenceIndex index) {
  if (std::exchange(sequences_[index].ready, true)) return;
  ready_.push_back({.query = sequences_[index].query, .sequence = index});
}

int64_t CallOutput::UnreadBytes(const v1::GenerateResponse& message) const {
  // Serialised, roughly: a token takes three bytes, each log-probability a dozen.
  int64_t bytes = static_cast<int64_t>(message.text().size()) + 3 * message.token_ids_size();
  if (!message.logprobs().empty()) {
    bytes += message.logprobs_size() * (8 + 12 * int64_t{message.logprobs(0).top_size()});
  }
  return bytes;
}

}  // namespace photon
