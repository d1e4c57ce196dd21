#include "server/http/completion_response.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/http/api_error.h"

namespace photon {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

int64_t CountCharacters(std::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

std::string FinishReasonOf(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP_TOKEN:
    case v1::FINISH_REASON_STOP_STRING:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_DRAIN:
      return "drain";
    default:  // ends the call with an error
      return "cancelled";
  }
}

int64_t SecondsSinceEpoch() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

CompletionResponse::CompletionResponse(CompletionRequest request,
                                       std::shared_ptr<const ModelFacts> model, std::string id)
    : request_(std::move(request)),
      model_(std::move(model)),
      id_(std::move(id)),
      created_(SecondsSinceEpoch()),
      samples_per_prompt_(request_.generation.parameters().n()) {
  std::string frame = Dump(Frame());
  frame.pop_back();
  event_begin_ = absl::StrCat("data: ", frame, R"(,"choices":[{"index":)");
  for (const v1::Prompt& prompt : request_.generation.prompts()) {
    // Where the text of a sequence's tokens depends on how the sequence begins.
    std::vector<TokenId> tokens;
    if (request_.logprobs.has_value()) {
      tokens.assign(prompt.token_ids().ids().begin(), prompt.token_ids().ids().end());
      if (tokens.empty()) tokens = model_->tokenizer->Encode(prompt.text());
    }
    for (int i = 0; i < samples_per_prompt_; ++i) samples_.emplace_back(*model_->tokenizer, tokens);
  }
}

Json CompletionResponse::Frame() const {
  return {{"id", id_},
          {"object", "text_completion"},
          {"created", created_},
          {"model", model_->name},
          {"system_fingerprint", absl::StrCat("photon-", PHOTON_VERSION)}};
}

std::string CompletionResponse::Event(CallOutput::Message message) {
  const Piece piece = Take(std::move(message));
  const Sample& sample = samples_[piece.sample];
  if (piece.text.empty() && piece.logprobs.is_null() && sample.finish_reason.empty()) return "";
  return absl::StrCat(
      event_begin_, piece.sample, R"(,"text":)", Dump(piece.text), R"(,"logprobs":)",
      Dump(piece.logprobs), R"(,"finish_reason":)",
      sample.finish_reason.empty() ? "null" : absl::StrCat("\"", sample.finish_reason, "\""), "}]",
      request_.include_usage ? R"(,"usage":null)" : "", "}\n\n");
}

std::string CompletionResponse::LastEvents() const {
  std::string events;
  if (request_.include_usage) {
    Json event = Frame();
    event["choices"] = Json::array();
    event["usage"] = Usage();
    events = absl::StrCat("data: ", Dump(event), "\n\n");
  }
  return events + "data: [DONE]\n\n";
}

std::string CompletionResponse::ErrorEvent(const absl::Status& error) {
  return absl::StrCat("data: ", ApiErrorJson(error), "\n\n");
}

void CompletionResponse::Add(CallOutput::Message message) {
  if (request_.best_of) {
    Sample& sample = samples_[message.query * samples_per_prompt_ + message.output.sample_index()];
    for (const v1::TokenLogprobs& token : message.output.logprobs()) {
      sample.logprob_sum += token.logprob();
    }
  }
  Piece piece = Take(std::move(message));
  Sample& sample = samples_[piece.sample];
  sample.text += piece.text;
  bytes_ += static_cast<int64_t>(piece.text.size());
  if (piece.logprobs.is_null()) return;
  bytes_ += 32 * int64_t{3 + request_.logprobs.value_or(0)} *
            static_cast<int64_t>(piece.logprobs["tokens"].size());
  if (sample.logprobs.is_null()) {
    sample.logprobs = std::move(piece.logprobs);
    return;
  }
  for (const auto& [name, values] : piece.logprobs.items()) {
    for (Json& value : values) sample.logprobs[name].push_back(std::move(value));
  }
}

std::string CompletionResponse::Body() {
  Json body = Frame();
  Json& choices = body["choices"] = Json::array();
  for (int prompt = 0; prompt < request_.generation.prompts_size(); ++prompt) {
    for (const size_t index : Choices(prompt)) {
      Sample& sample = samples_[index];
      choices.push_back({{"index", choices.size()},
                         {"text", std::move(sample.text)},
                         {"logprobs", std::move(sample.logprobs)},
                         {"finish_reason", sample.finish_reason}});
    }
  }
  body["usage"] = Usage();
  return Dump(body);
}

std::vector<size_t> CompletionResponse::Choices(size_t prompt) const {
  std::vector<size_t> indices(samples_per_prompt_);
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = prompt * samples_per_prompt_ + i;
  if (!request_.best_of) return indices;
  const auto mean_logprob = [&](size_t index) {
    const Sample& sample = samples_[index];
    return sample.logprob_sum / static_cast<double>(std::max<int64_t>(sample.generated_tokens, 1));
  };
  std::sort(indices.begin(), indices.end(), [&](size_t a, size_t b) {
    return std::make_pair(-mean_logprob(a), a) < std::make_pair(-mean_logprob(b), b);
  });
  indices.resize(request_.n);
  return indices;
}

CompletionResponse::Piece CompletionResponse::Take(CallOutput::Message message) {
  Piece piece;
  piece.sample = message.query * samples_per_prompt_ + message.output.sample_index();
  Sample& sample = samples_[piece.sample];
  if (!std::exchange(sample.begun, true) && request_.echo) piece.text = PromptText(message.query);
  piece.text += message.output.text();
  sample.num_characters += CountCharacters(message.output.text());
  if (message.output.has_result()) {
    const v1::GenerationResult& result = message.output.result();
    sample.finish_reason = FinishReasonOf(result.finish_reason());
    sample.generated_tokens = result.usage().generated_tokens();
    generated_tokens_ += sample.generated_tokens;
    // The samples of a prompt have it in common.
    if (message.output.sample_index() == 0) {
      prompt_tokens_ += result.usage().prompt_tokens();
      cached_tokens_ += result.usage().cached_tokens();
    }
  }
  if (request_.logprobs.has_value()) {
    AppendTokens(message.output, sample);
    piece.logprobs = TakeLogprobs(sample);
  }
  return piece;
}

void CompletionResponse::AppendTokens(const v1::GenerateResponse& output, Sample& sample) const {
  for (int i = 0; i < output.token_ids_size(); ++i) {
    PendingToken token;
    token.text = TokenText(output.token_ids(i));
    token.logprob = output.logprobs(i).logprob();
    token.offset = sample.token_characters;
    sample.token_characters += CountCharacters(sample.detokenizer.Append(output.token_ids(i)));
    for (const v1::TokenLogprob& top : output.logprobs(i).top()) {
      token.top.emplace_back(TokenText(top.token_id()), top.logprob());
    }
    sample.pending.push_back(std::move(token));
  }
}

Json CompletionResponse::TakeLogprobs(Sample& sample) const {
  Json text_offset = Json::array(), token_logprobs = Json::array(), tokens = Json::array();
  Json top_logprobs = Json::array();
  // What belongs to a stop condition has no text, and is left out with it.
  const bool take_all = sample.finish_reason == "length" || sample.finish_reason == "drain";
  while (!sample.pending.empty()) {
    PendingToken& token = sample.pending.front();
    if (!take_all && token.offset >= sample.num_characters) break;
    text_offset.push_back(token.offset);
    token_logprobs.push_back(token.logprob);
    Json top = Json::object();
    for (auto& [text, logprob] : token.top) {
      if (!top.contains(text)) top[text] = logprob;
    }
    // The token that was drawn is always among them.
    if (!top.contains(token.text)) top[token.text] = token.logprob;
    top_logprobs.push_back(std::move(top));
    tokens.push_back(std::move(token.text));
    sample.pending.pop_front();
  }
  if (tokens.empty()) return nullptr;
  return {{"text_offset", std::move(text_offset)},
          {"token_logprobs", std::move(token_logprobs)},
          {"tokens", std::move(tokens)},
          {"top_logprobs", std::move(top_logprobs)}};
}

std::string CompletionResponse::TokenText(TokenId token) const {
  const Tokenizer& tokenizer = *model_->tokenizer;
  if (token < 0 || token >= tokenizer.vocab_size()) return absl::StrCat("<", token, ">");
  switch (tokenizer.type(token)) {
    case Tokenizer::PieceType::kByte: {
      char text[16];
      std::snprintf(text, sizeof(text), "bytes:\\x%02x",
                    static_cast<unsigned char>(tokenizer.surface(token).front()));
      return text;
    }
    case Tokenizer::PieceType::kControl:
    case Tokenizer::PieceType::kUnknown:
      return std::string(tokenizer.piece(token));
    default:
      return std::string(tokenizer.surface(token));
  }
}

std::string CompletionResponse::PromptText(size_t prompt) const {
  const v1::Prompt& content = request_.generation.prompts(static_cast<int>(prompt));
  if (!content.has_token_ids()) return content.text();
  const auto& ids = content.token_ids().ids();
  return model_->tokenizer->Decode({ids.data(), static_cast<size_t>(ids.size())});
}

Json CompletionResponse::Usage() const {
  return {{"prompt_tokens", prompt_tokens_},
          {"completion_tokens", generated_tokens_},
          {"total_tokens", prompt_tokens_ + generated_tokens_},
          {"prompt_tokens_details", {{"cached_tokens", cached_tokens_}}}};
}

}  // namespace photon
