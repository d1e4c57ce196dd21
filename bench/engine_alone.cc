#include "bench/engine_alone.h"

#include <chrono>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/serving_metrics.h"

namespace photon {
namespace {

class DropTokens final : public TokenSink {
 public:
  bool OnTokens(int, std::span<const SampledToken>) override { return true; }
};

// Every row's prompt, then every row's output, once.
absl::Status RunOnce(Engine& engine, std::span<const Row> prompts, std::span<const Row> outputs,
                     int steps) {
  const EngineShape& shape = engine.shape();
  DropTokens sink;
  const size_t together =
      prompts[0].input.empty()
          ? prompts.size()
          : std::max<size_t>(1, shape.max_prefill_tokens / prompts[0].input.size());
  for (size_t first = 0; first < prompts.size(); first += together) {
    if (prompts[0].input.empty()) break;
    const auto step = prompts.subspan(first, std::min(together, prompts.size() - first));
    if (absl::Status status = engine.Step({}, step, sink); !status.ok()) return status;
  }
  std::vector<Row> rows(outputs.begin(), outputs.end());
  for (int i = 0; i < steps; ++i) {
    if (absl::Status status = engine.Step({}, rows, sink); !status.ok()) return status;
    for (Row& row : rows) row.cached_tokens += shape.meta_tokens;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<double> EngineTokensPerSecond(Engine& engine, int rows, int prompt_tokens,
                                             int output_tokens, int repeats) {
  const EngineShape& shape = engine.shape();
  const int meta = shape.meta_tokens;
  const int prompt_size = prompt_tokens / meta * meta;
  const int steps = (output_tokens + meta - 1) / meta;
  const int total = prompt_size + steps * meta;
  const int pages_per_row = (total + shape.page_tokens - 1) / shape.page_tokens;
  if (rows > shape.max_rows || total > shape.max_context ||
      rows * pages_per_row > shape.num_pages || prompt_size > shape.max_prefill_tokens) {
    return absl::FailedPreconditionError(
        absl::StrCat("the engine alone: ", rows, " rows of ", total, " tokens are more than ",
                     shape.max_rows, " rows, ", shape.num_pages, " pages of ", shape.page_tokens,
                     " or ", shape.max_context, " tokens"));
  }
  std::vector<std::vector<TokenId>> texts(rows, std::vector<TokenId>(prompt_size));
  std::vector<std::vector<PageId>> pages(rows);
  std::vector<Row> prompts, outputs;
  for (int r = 0; r < rows; ++r) {
    for (int t = 0; t < prompt_size; ++t) texts[r][t] = (t * 7919 + r * 31 + 3) % shape.vocab_size;
    for (int p = 0; p < pages_per_row; ++p) pages[r].push_back(PageId{r * pages_per_row + p});
    prompts.push_back({.input = texts[r], .pages = pages[r], .decode = false});
    outputs.push_back(
        {.cached_tokens = prompt_size, .pages = pages[r], .sampling = {.temperature = 0}});
  }
  std::vector<double> speeds;
  for (int i = 0; i <= repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    if (absl::Status status = RunOnce(engine, prompts, outputs, steps); !status.ok()) return status;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (i > 0) speeds.push_back(double{1} * rows * steps * meta / seconds.count());
  }
  return Median(speeds);
}

}  // namespace photon
