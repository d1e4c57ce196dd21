#include "server/model_service.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/generation_request.h"
#include "server/request_id.h"
#include "server/unary_call.h"

namespace photon {
namespace {

void FillStack(const StackConfig& stack, v1::StackInfo& info) {
  info.set_hidden_size(stack.hidden_size);
  info.set_num_layers(stack.num_layers);
  info.set_num_heads(stack.num_heads);
  info.set_num_kv_heads(stack.num_kv_heads);
  info.set_head_dim(stack.head_dim);
  info.set_intermediate_size(stack.intermediate_size);
}

v1::GetModelInfoResponse MakeModelInfo(const ServedModel& served) {
  const ModelFacts& model = served.facts();
  v1::GetModelInfoResponse info;
  info.set_name(model.name);
  info.set_server_version(PHOTON_VERSION);
  info.set_device(model.shape.device);
  info.set_num_parameters(NumParameters(model.config));
  info.set_vocab_size(model.shape.vocab_size);
  info.set_max_context_tokens(MaxSequenceTokens(model.shape));
  info.set_meta_context_tokens(model.shape.meta_tokens);
  for (const LevelConfig& level : model.config.levels) {
    v1::LevelInfo& level_info = *info.add_levels();
    level_info.set_chunk_size(level.chunk_size);
    level_info.set_converter_width(level.converter_width);
    level_info.set_encoder_span(level.encoder_span == EncoderSpan::kGlobal
                                    ? v1::ENCODER_SPAN_GLOBAL
                                    : v1::ENCODER_SPAN_BLOCK);
    FillStack(level.encoder, *level_info.mutable_encoder());
    FillStack(level.decoder, *level_info.mutable_decoder());
  }
  for (GenerationMode mode : model.shape.modes) info.add_modes(ToProto(mode));
  info.set_default_mode(ToProto(model.default_mode));
  info.set_default_max_tokens(model.default_max_tokens);
  if (model.config.bos_token_id.has_value()) info.set_bos_token_id(*model.config.bos_token_id);
  for (TokenId id : model.config.eos_token_ids) info.add_eos_token_ids(id);
  info.set_tokenizer_sha256(model.tokenizer->fingerprint());
  info.set_generation(served.generation());
  info.mutable_cache()->set_page_tokens(model.shape.page_tokens);
  info.mutable_cache()->set_page_bytes(model.shape.page_bytes);
  info.mutable_cache()->set_num_pages(model.shape.num_pages);
  return info;
}

absl::StatusOr<int> CountPromptTokens(const v1::EstimateCostRequest& request,
                                      const ModelFacts& model) {
  if (request.has_prompt_tokens()) {
    if (request.prompt_tokens() >= 0) return request.prompt_tokens();
    return absl::InvalidArgumentError(
        absl::StrCat("prompt_tokens: expected at least 0, got ", request.prompt_tokens()));
  }
  const absl::StatusOr<std::vector<TokenId>> tokens = PromptTokens(request.prompt(), model);
  if (!tokens.ok()) return tokens.status();
  return static_cast<int>(tokens->size());
}

// Bytes of keys and values of `tokens` tokens in a Transformer of the model's layers, each token in
// every encoder and decoder layer, at two bytes per element.
int64_t TransformerCacheBytes(const ModelConfig& config, int64_t tokens) {
  int64_t elements = 0;
  for (const LevelConfig& level : config.levels) {
    for (const StackConfig* stack : {&level.encoder, &level.decoder}) {
      elements += int64_t{2} * stack->num_layers * stack->num_kv_heads * stack->head_dim;
    }
  }
  return 2 * elements * tokens;
}

absl::StatusOr<v1::EstimateCostResponse> EstimateCost(const v1::EstimateCostRequest& request,
                                                      const ModelFacts& model,
                                                      const Scheduler& scheduler) {
  absl::StatusOr<int> prompt_tokens = CountPromptTokens(request, model);
  if (!prompt_tokens.ok()) return prompt_tokens.status();
  const int limit = MaxSequenceTokens(model.shape);
  int max_tokens = std::clamp(limit - *prompt_tokens, 1, std::max(model.default_max_tokens, 1));
  if (request.has_max_tokens()) max_tokens = request.max_tokens();
  if (max_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens: expected at least 1, got ", max_tokens));
  }
  const int64_t tokens = int64_t{*prompt_tokens} + max_tokens;
  const int page_tokens = model.shape.page_tokens;
  const int64_t pages = (tokens + page_tokens - 1) / page_tokens;
  const CostEstimate estimate = scheduler.Estimate(*prompt_tokens, max_tokens);

  v1::EstimateCostResponse response;
  response.set_prompt_tokens(*prompt_tokens);
  response.set_max_tokens(max_tokens);
  response.set_pages(static_cast<int32_t>(pages));
  response.set_cache_bytes(pages * model.shape.page_bytes);
  response.set_transformer_cache_bytes(TransformerCacheBytes(model.config, tokens));
  response.set_fits(estimate.fits);
  response.set_fits_now(estimate.fits_now);
  response.set_expected_wait_ms(
      std::chrono::duration<double, std::milli>(estimate.expected_wait).count());
  return response;
}

}  // namespace

ModelService::ModelService(const ModelHost* models) : models_(models) {}

grpc::ServerUnaryReactor* ModelService::GetModelInfo(grpc::CallbackServerContext* context,
                                                     const v1::GetModelInfoRequest*,
                                                     v1::GetModelInfoResponse* response) {
  TakeRequestId(context);
  *response = MakeModelInfo(*models_->current());
  return FinishUnary(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* ModelService::Tokenize(grpc::CallbackServerContext* context,
                                                 const grpc::ByteBuffer* request_buffer,
                                                 grpc::ByteBuffer* response_buffer) {
  return AnswerUnary<v1::TokenizeRequest>(
      context, *request_buffer, *response_buffer,
      [&](const v1::TokenizeRequest& request) -> absl::StatusOr<v1::TokenizeResponse> {
        const std::shared_ptr<ServedModel> model = models_->current();
        const std::vector<TokenId> tokens = request.add_bos()
                                                ? EncodeFromBos(request.text(), model->facts())
                                                : model->facts().tokenizer->Encode(request.text());
        v1::TokenizeResponse response;
        response.mutable_token_ids()->Add(tokens.begin(), tokens.end());
        return response;
      });
}

grpc::ServerUnaryReactor* ModelService::Detokenize(grpc::CallbackServerContext* context,
                                                   const v1::DetokenizeRequest* request,
                                                   v1::DetokenizeResponse* response) {
  TakeRequestId(context);
  const std::shared_ptr<ServedModel> model = models_->current();
  const int vocab_size = model->facts().shape.vocab_size;
  for (int i = 0; i < request->token_ids_size(); ++i) {
    const TokenId id = request->token_ids(i);
    if (id < 0 || id >= vocab_size) {
      return FinishUnary(
          context, absl::InvalidArgumentError(absl::StrCat("token_ids[", i, "]: expected [0, ",
                                                           vocab_size, "), got ", id)));
    }
  }
  const auto& ids = request->token_ids();
  response->set_text(
      model->facts().tokenizer->Decode({ids.data(), static_cast<size_t>(ids.size())}));
  return FinishUnary(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* ModelService::EstimateCost(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request_buffer,
                                                     grpc::ByteBuffer* response_buffer) {
  return AnswerUnary<v1::EstimateCostRequest>(
      context, *request_buffer, *response_buffer, [&](const v1::EstimateCostRequest& request) {
        const std::shared_ptr<ServedModel> model = models_->current();
        return photon::EstimateCost(request, model->facts(), model->scheduler());
      });
}

}  // namespace photon
