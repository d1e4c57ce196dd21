#include "client/text.h"

#include <google/protobuf/util/json_util.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"

namespace photon {
namespace {

std::string FinishText(const v1::GenerationResult& result) {
  switch (result.finish_reason()) {
    case v1::FINISH_REASON_STOP_TOKEN:
      return absl::StrCat("ended by stop token ", result.stop_token_id());
    case v1::FINISH_REASON_STOP_STRING:
      return absl::StrCat("ended by stop string \"", result.stop_string(), "\"");
    case v1::FINISH_REASON_LENGTH:
      return "ended by max-tokens";
    case v1::FINISH_REASON_DEADLINE:
      return "cut off by the deadline";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    case v1::FINISH_REASON_DRAIN:
      return "cut off by the server's shutdown";
    case v1::FINISH_REASON_STALLED:
      return "cut off because its output was not read";
    default:
      return "ended";
  }
}

std::string StackText(const v1::StackInfo& stack) {
  return absl::StrFormat("%d x %d, %d heads (%d kv) of %d, ffn %d", stack.num_layers(),
                         stack.hidden_size(), stack.num_heads(), stack.num_kv_heads(),
                         stack.head_dim(), stack.intermediate_size());
}

}  // namespace

std::string ModeName(v1::GenerationMode mode) {
  switch (mode) {
    case v1::GENERATION_MODE_EXACT:
      return "exact";
    case v1::GENERATION_MODE_HIERGEN:
      return "hiergen";
    case v1::GENERATION_MODE_RECGEN:
      return "recgen";
    default:
      return "default";
  }
}

std::string ResultText(const v1::GenerationResult& result) {
  const v1::Usage& usage = result.usage();
  const v1::Timings& timings = result.timings();
  const double seconds = (timings.prefill_ms() + timings.decode_ms()) / 1000;
  const double tokens_per_second = seconds > 0 ? usage.generated_tokens() / seconds : 0;
  return absl::StrFormat(
      "%d tokens in %.2f s, %.1f tokens/s; %s\n"
      "%s, seed %d; prompt %d tokens, %d of them cached; "
      "queue %.1f ms, prefill %.1f ms, decode %.1f ms, %d steps\n",
      usage.generated_tokens(), seconds, tokens_per_second, FinishText(result),
      ModeName(result.mode()), result.seed(), usage.prompt_tokens(), usage.cached_tokens(),
      timings.queue_ms(), timings.prefill_ms(), timings.decode_ms(), timings.steps());
}

std::string ModelInfoText(const v1::GetModelInfoResponse& info) {
  std::vector<std::string> modes;
  for (const int mode : info.modes()) {
    modes.push_back(ModeName(static_cast<v1::GenerationMode>(mode)));
    if (mode == info.default_mode()) modes.back() += " (default)";
  }
  const v1::CacheInfo& cache = info.cache();
  std::vector<std::pair<std::string, std::string>> facts = {
      {"model", info.name()},
      {"parameters", absl::StrCat(info.num_parameters())},
      {"device", info.device()},
      {"server", info.server_version()},
      {"context", absl::StrCat(info.max_context_tokens(), " tokens")},
      {"meta-context", absl::StrCat(info.meta_context_tokens(), " tokens")},
      {"modes", absl::StrJoin(modes, ", ")},
      {"max-tokens", absl::StrCat(info.default_max_tokens(), " unless asked for")},
      {"vocabulary", absl::StrCat(info.vocab_size(), " tokens")},
      {"bos", info.has_bos_token_id() ? absl::StrCat(info.bos_token_id()) : "none"},
      {"eos", info.eos_token_ids().empty() ? "none" : absl::StrJoin(info.eos_token_ids(), ", ")},
      {"tokenizer", absl::StrCat("sha256 ", info.tokenizer_sha256())},
      {"cache", absl::StrFormat("%d pages of %d tokens, %d bytes each", cache.num_pages(),
                                cache.page_tokens(), cache.page_bytes())},
  };
  for (int i = 0; i < info.levels_size(); ++i) {
    const v1::LevelInfo& level = info.levels(i);
    const std::string name = absl::StrCat("level ", i + 1);
    facts.push_back(
        {name,
         absl::StrFormat("chunks of %d, %d conditioning vectors, %s encoder", level.chunk_size(),
                         level.converter_width(),
                         level.encoder_span() == v1::ENCODER_SPAN_BLOCK ? "block" : "global")});
    facts.push_back({"  encoder", StackText(level.encoder())});
    facts.push_back({"  decoder", StackText(level.decoder())});
  }
  std::string text;
  for (const auto& [name, value] : facts) absl::StrAppendFormat(&text, "%-14s%s\n", name, value);
  return text;
}

std::string IntegrationText(const v1::IntegrationResult& integration) {
  std::string text = absl::StrFormat(
      "%d samples finished, %d cancelled, %d without an answer; %d tokens, at most %d more saved\n",
      integration.samples_finished(), integration.samples_cancelled(),
      integration.samples_without_answer(), integration.generated_tokens(),
      integration.saved_tokens());
  for (const v1::AnswerCount& answer : integration.answers()) {
    absl::StrAppendFormat(&text, "%d votes, first sample %d: %s\n", answer.votes(),
                          answer.sample_index(), answer.answer());
  }
  return text;
}

std::string DocumentText(const v1::Document& document) {
  const absl::Time expires = absl::FromUnixMillis(document.expires_unix_ms());
  return absl::StrFormat("%s  %d tokens  %d bytes of cache  expires %s  %s\n", document.id(),
                         document.num_tokens(), document.cache_bytes(),
                         absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", expires, absl::UTCTimeZone()),
                         document.display_name());
}

std::string EstimateText(const v1::EstimateCostResponse& estimate) {
  const double share = estimate.transformer_cache_bytes() > 0
                           ? 100.0 * static_cast<double>(estimate.cache_bytes()) /
                                 static_cast<double>(estimate.transformer_cache_bytes())
                           : 0;
  return absl::StrFormat(
      "tokens        %d of prompt, %d of output at most\n"
      "cache         %d pages, %d bytes\n"
      "transformer   %d bytes with the same layers: this is %.1f %%\n"
      "fits          %s\n"
      "wait          %.1f ms\n",
      estimate.prompt_tokens(), estimate.max_tokens(), estimate.pages(), estimate.cache_bytes(),
      estimate.transformer_cache_bytes(), share,
      estimate.fits_now() ? "now"
      : estimate.fits()   ? "later"
                          : "never",
      estimate.expected_wait_ms());
}

std::string JsonLine(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string line;
  // Fails only for Any and for malformed field masks; the contract has neither.
  static_cast<void>(google::protobuf::util::MessageToJsonString(message, &line, options));
  return line + "\n";
}

}  // namespace photon
