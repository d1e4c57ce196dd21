#include "server/model_service.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "scheduler/scheduler.h"
#include "server/byte_buffer_codec.h"
#include "server/generation_request.h"
#include "server/grpc_status.h"
#include "server/request_id.h"

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

v1::GetModelInfoResponse MakeModelInfo(const ModelFacts& model) {
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
  info.mutable_cache()->set_page_tokens(model.shape.page_tokens);
  info.mutable_cache()->set_page_bytes(model.shape.page_bytes);
  info.mutable_cache()->set_num_pages(model.shape.num_pages);
  return info;
}

grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

ModelService::ModelService(const ModelFacts* model) : model_(model) {}

grpc::ServerUnaryReactor* ModelService::GetModelInfo(grpc::CallbackServerContext* context,
                                                     const v1::GetModelInfoRequest*,
                                                     v1::GetModelInfoResponse* response) {
  EchoRequestId(context);
  *response = MakeModelInfo(*model_);
  return Finish(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* ModelService::Tokenize(grpc::CallbackServerContext* context,
                                                 const grpc::ByteBuffer* buffer,
                                                 grpc::ByteBuffer* response_buffer) {
  EchoRequestId(context);
  v1::TokenizeRequest request;
  if (absl::Status status = ParseMessage(*buffer, &request); !status.ok()) {
    return Finish(context, status);
  }
  v1::TokenizeResponse response;
  if (request.add_bos() && model_->config.bos_token_id.has_value()) {
    response.add_token_ids(*model_->config.bos_token_id);
  }
  const std::vector<TokenId> tokens = model_->tokenizer->Encode(request.text());
  response.mutable_token_ids()->Add(tokens.begin(), tokens.end());
  *response_buffer = SerializeMessage(response);
  return Finish(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* ModelService::Detokenize(grpc::CallbackServerContext* context,
                                                   const v1::DetokenizeRequest* request,
                                                   v1::DetokenizeResponse* response) {
  EchoRequestId(context);
  const int vocab_size = model_->shape.vocab_size;
  for (int i = 0; i < request->token_ids_size(); ++i) {
    const TokenId id = request->token_ids(i);
    if (id < 0 || id >= vocab_size) {
      return Finish(context, absl::InvalidArgumentError(absl::StrCat(
                                 "token_ids[", i, "]: expected [0, ", vocab_size, "), got ", id)));
    }
  }
  const auto& ids = request->token_ids();
  response->set_text(model_->tokenizer->Decode({ids.data(), static_cast<size_t>(ids.size())}));
  return Finish(context, absl::OkStatus());
}

}  // namespace photon
