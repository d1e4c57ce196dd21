#include "engine/validate_step.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"

namespace photon {
namespace {

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

bool IsPage(const EngineShape& shape, PageId page) {
  const auto id = static_cast<int32_t>(page);
  return id >= 0 && id < shape.num_pages;
}

absl::Status ValidateSampling(const Sampling& sampling) {
  if (!(sampling.temperature >= 0) || std::isinf(sampling.temperature)) {
    return Invalid("sampling.temperature: must be finite and at least 0, got ",
                   sampling.temperature);
  }
  if (sampling.top_k < 0)
    return Invalid("sampling.top_k: must be at least 0, got ", sampling.top_k);
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return Invalid("sampling.top_p: must be in (0, 1], got ", sampling.top_p);
  }
  if (!(sampling.min_p >= 0 && sampling.min_p <= 1)) {
    return Invalid("sampling.min_p: must be in [0, 1], got ", sampling.min_p);
  }
  if (sampling.top_logprobs < 0 || sampling.top_logprobs > kMaxTopLogprobs) {
    return Invalid("sampling.top_logprobs: must be from 0 to ", kMaxTopLogprobs, ", got ",
                   sampling.top_logprobs);
  }
  return absl::OkStatus();
}

absl::Status ValidateRow(const EngineShape& shape, const Row& row) {
  const int meta = shape.meta_tokens;
  if (row.cached_tokens < 0 || row.cached_tokens % meta != 0) {
    return Invalid("cached_tokens: must be a multiple of ", meta, ", got ", row.cached_tokens);
  }
  const auto input = static_cast<int64_t>(row.input.size());
  if (!row.decode && input % meta != 0) {
    return Invalid("input: without decode must be a multiple of ", meta, " tokens, got ", input);
  }
  const int64_t total = row.cached_tokens + input;
  if (total > shape.max_context - (row.decode ? 1 : 0)) {
    return Invalid("input: context of ", total, " tokens", row.decode ? " and one more" : "",
                   " exceeds max_context ", shape.max_context);
  }
  for (TokenId token : row.input) {
    if (token < 0 || token >= shape.vocab_size) {
      return Invalid("input: token ", token, " is outside the vocabulary of ", shape.vocab_size);
    }
  }
  const int64_t covered = total / meta * meta + (row.decode ? meta : 0);
  const int64_t pages_needed = (covered + shape.page_tokens - 1) / shape.page_tokens;
  if (static_cast<int64_t>(row.pages.size()) < pages_needed) {
    return Invalid("pages: ", pages_needed, " needed for ", covered, " tokens, got ",
                   row.pages.size());
  }
  for (PageId page : row.pages) {
    if (!IsPage(shape, page)) {
      return Invalid("pages: ", static_cast<int32_t>(page), " is outside the pool of ",
                     shape.num_pages);
    }
  }
  if (std::find(shape.modes.begin(), shape.modes.end(), row.mode) == shape.modes.end()) {
    return Invalid("mode: not supported by this checkpoint");
  }
  const int64_t logits = int64_t{meta} * shape.vocab_size;
  if (!row.logits.empty() && static_cast<int64_t>(row.logits.size()) != logits) {
    return Invalid("logits: must be empty or hold ", logits, " values, got ", row.logits.size());
  }
  return ValidateSampling(row.sampling);
}

}  // namespace

absl::Status ValidateStep(const EngineShape& shape, std::span<const PageCopy> copies,
                          std::span<const Row> rows) {
  for (size_t i = 0; i < copies.size(); ++i) {
    if (!IsPage(shape, copies[i].from) || !IsPage(shape, copies[i].to)) {
      return Invalid("copies[", i, "]: outside the pool of ", shape.num_pages, " pages");
    }
  }
  if (static_cast<int64_t>(rows.size()) > shape.max_rows) {
    return Invalid("rows: at most ", shape.max_rows, " in a step, got ", rows.size());
  }
  int64_t prefill_tokens = 0;
  std::vector<int32_t> written;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    if (absl::Status status = ValidateRow(shape, row); !status.ok()) {
      return Invalid("rows[", i, "].", status.message());
    }
    const int64_t whole =
        static_cast<int64_t>(row.input.size()) / shape.meta_tokens * shape.meta_tokens;
    prefill_tokens += whole;
    const int64_t end = row.cached_tokens + whole + (row.decode ? shape.meta_tokens : 0);
    for (int64_t page = row.cached_tokens / shape.page_tokens; page * shape.page_tokens < end;
         ++page) {
      written.push_back(static_cast<int32_t>(row.pages[page]));
    }
  }
  if (prefill_tokens > shape.max_prefill_tokens) {
    return Invalid("rows: at most ", shape.max_prefill_tokens,
                   " whole-meta-context input tokens in a step, got ", prefill_tokens);
  }
  std::sort(written.begin(), written.end());
  const auto twice = std::adjacent_find(written.begin(), written.end());
  if (twice != written.end()) {
    return Invalid("rows: page ", *twice, " is written by two rows or twice by one");
  }
  return absl::OkStatus();
}

}  // namespace photon
