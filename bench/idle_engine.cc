#include "bench/idle_engine.h"

namespace photon {

EngineShape IdleEngine::Shape(int vocab_size, int max_context, int max_rows, int num_pages) {
  return {.device = "none",
          .vocab_size = vocab_size,
          .meta_tokens = 16,
          .max_context = max_context,
          .page_tokens = 256,
          .num_pages = num_pages,
          .page_bytes = int64_t{256} * 384,  // as models/demo in bf16
          .max_rows = max_rows,
          .max_prefill_tokens = 1 << 20,
          .modes = {GenerationMode::kExact}};
}

absl::Status IdleEngine::Step(std::span<const PageCopy> /*copies*/, std::span<const Row> rows,
                              TokenSink& sink) {
  is_done_.assign(rows.size(), false);
  for (int slot = 0; slot < shape_.meta_tokens; ++slot) {
    for (size_t r = 0; r < rows.size(); ++r) {
      const int forced = static_cast<int>(rows[r].input.size()) % shape_.meta_tokens;
      if (!rows[r].decode || slot < forced || is_done_[r]) continue;
      const SampledToken token = {
          .token = static_cast<TokenId>((r * 31 + slot * 7 + 3) % shape_.vocab_size),
          .logprob = -1};
      is_done_[r] = !sink.OnTokens(static_cast<int>(r), {&token, 1});
    }
    sink.OnSlotEnd();
  }
  return absl::OkStatus();
}

}  // namespace photon
