// What a completion says, as the completions API words it: one JSON object, or a server-sent event
// for each piece.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/detokenizer.h"
#include "photon/v1/generation.pb.h"
#include "server/call_output.h"
#include "server/http/completion_request.h"
#include "server/model_facts.h"

namespace photon {

// For one thread at a time.
class CompletionResponse {
 public:
  // `id`: "cmpl-...".
  CompletionResponse(CompletionRequest request, std::shared_ptr<const ModelFacts> model,
                     std::string id);

  // --- With `stream` ---

  // The event of a message; empty if it has nothing to say.
  std::string Event(CallOutput::Message message);
  // The last events, of a call that went well.
  std::string LastEvents() const;
  // The last event of one that did not.
  static std::string ErrorEvent(const absl::Status& error);

  // --- Without ---

  void Add(CallOutput::Message message);
  // Of what has been added, roughly, as it will be sent.
  int64_t bytes() const { return bytes_; }
  std::string Body();

 private:
  // A token that waits for its text to be certain, so that text and log-probabilities agree.
  struct PendingToken {
    std::string text;
    double logprob = 0;
    std::vector<std::pair<std::string, double>> top;
    int64_t offset = 0;  // of its text, in characters
  };

  // One sample of a prompt.
  struct Sample {
    explicit Sample(const Tokenizer& tokenizer, std::span<const TokenId> prompt)
        : detokenizer(tokenizer, prompt) {}

    bool begun = false;
    int64_t num_characters = 0;  // of the text sent or added
    std::string finish_reason;   // once it has ended
    int64_t generated_tokens = 0;
    // With logprobs:
    Detokenizer detokenizer;       // of all tokens, whether their text is certain or not
    int64_t token_characters = 0;  // that it has given
    std::deque<PendingToken> pending;
    // Without `stream`:
    std::string text;
    nlohmann::ordered_json logprobs;  // null without
    double logprob_sum = 0;
  };

  // What a message adds to its sample.
  struct Piece {
    size_t sample = 0;  // into samples_
    std::string text;
    nlohmann::ordered_json logprobs;  // null: none
  };

  Piece Take(CallOutput::Message message);
  void AppendTokens(const v1::GenerateResponse& output, Sample& sample) const;
  nlohmann::ordered_json TakeLogprobs(Sample& sample) const;
  std::string TokenText(TokenId token) const;
  std::string PromptText(size_t prompt) const;
  nlohmann::ordered_json Usage() const;
  nlohmann::ordered_json Frame() const;
  // Indices of the samples that become the choices of a prompt.
  std::vector<size_t> Choices(size_t prompt) const;

  const CompletionRequest request_;
  const std::shared_ptr<const ModelFacts> model_;
  const std::string id_;
  const int64_t created_;
  std::string event_begin_;  // of each event, up to the index of its choice

  const int samples_per_prompt_;
  std::vector<Sample> samples_;  // of the first prompt, then those of the next
  int64_t bytes_ = 0;
  int64_t prompt_tokens_ = 0;
  int64_t cached_tokens_ = 0;
  int64_t generated_tokens_ = 0;
};

}  // namespace photon
