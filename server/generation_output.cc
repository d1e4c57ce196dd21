#include "server/generation_output.h"

#include <algorithm>
#include <chrono>

namespace photon {
namespace {

double Milliseconds(Duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

void FillTimings(const SequenceStats& stats, v1::Timings& timings) {
  const TimePoint first_step = stats.first_step.value_or(stats.finished);
  const TimePoint first_token = stats.first_token.value_or(stats.finished);
  timings.set_queue_ms(Milliseconds(first_step - stats.submitted));
  timings.set_prefill_ms(Milliseconds(first_token - first_step));
  timings.set_decode_ms(Milliseconds(stats.finished - first_token));
  timings.set_steps(stats.steps);
}

// Of a sequence that met no stop condition.
v1::FinishReason ReasonOf(SequenceEnd end) {
  switch (end) {
    case SequenceEnd::kLength:
      return v1::FINISH_REASON_LENGTH;
    case SequenceEnd::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case SequenceEnd::kStalled:
      return v1::FINISH_REASON_STALLED;
    case SequenceEnd::kDrained:
      return v1::FINISH_REASON_DRAIN;
    case SequenceEnd::kListener:
    case SequenceEnd::kStopToken:
    case SequenceEnd::kCancelled:
    case SequenceEnd::kEngineFailed:
      return v1::FINISH_REASON_CANCELLED;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

GenerationOutput::GenerationOutput(const Query& query, const Tokenizer& tokenizer)
    : stop_strings_(query.stop_strings),
      stop_tokens_(query.sequence.stop_tokens),
      logprobs_(query.logprobs),
      seed_(query.sequence.sampling.seed),
      mode_(query.sequence.mode),
      detokenizer_(tokenizer, query.sequence.prompt),
      stop_matcher_(query.stop_strings) {}

std::optional<size_t> GenerationOutput::Append(std::span<const SampledToken> tokens,
                                               v1::GenerateResponse& message) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    const SampledToken& token = tokens[i];
    message.add_token_ids(token.token);
    if (logprobs_) {
      v1::TokenLogprobs* logprobs = message.add_logprobs();
      logprobs->set_logprob(token.logprob);
      for (const TokenLogprob& alternative : token.top) {
        v1::TokenLogprob* top = logprobs->add_top();
        top->set_token_id(alternative.token);
        top->set_logprob(alternative.logprob);
      }
    }
    if (std::find(stop_tokens_.begin(), stop_tokens_.end(), token.token) != stop_tokens_.end()) {
      stop_token_ = token.token;
      return i + 1;
    }
    message.mutable_text()->append(stop_matcher_.Append(detokenizer_.Append(token.token)));
    if (stop_matcher_.match().has_value()) return i + 1;
  }
  return std::nullopt;
}

void GenerationOutput::Finish(SequenceEnd end, const SequenceStats& stats,
                              v1::GenerateResponse& message) {
  std::string* text = message.mutable_text();
  text->append(stop_matcher_.Append(detokenizer_.Finish()));
  text->append(stop_matcher_.Finish());

  v1::GenerationResult& result = *message.mutable_result();
  if (stop_matcher_.match().has_value()) {
    result.set_finish_reason(v1::FINISH_REASON_STOP_STRING);
    result.set_stop_string(stop_strings_[*stop_matcher_.match()]);
  } else if (stop_token_.has_value()) {
    result.set_finish_reason(v1::FINISH_REASON_STOP_TOKEN);
    result.set_stop_token_id(*stop_token_);
  } else {
    result.set_finish_reason(ReasonOf(end));
  }
  result.mutable_usage()->set_prompt_tokens(stats.prompt_tokens);
  result.mutable_usage()->set_cached_tokens(stats.cached_tokens);
  result.mutable_usage()->set_generated_tokens(stats.generated_tokens);
  result.mutable_usage()->set_preemptions(stats.preemptions);
  result.mutable_usage()->set_reencoded_tokens(stats.reencoded_tokens);
  FillTimings(stats, *result.mutable_timings());
  result.set_seed(seed_);
  result.set_mode(ToProto(mode_));
}

}  // namespace photon
