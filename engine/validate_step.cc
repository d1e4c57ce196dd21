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

// Where a row's tables are written, in pages.
struct WrittenPages {
  int64_t begin, end;
};

WrittenPages PagesWritten(const EngineShape& shape, const Row& row) {
  const int meta = shape.meta_tokens, page = shape.page_tokens;
  const int64_t total = row.cached_tokens + static_cast<int64_t>(row.input.size());
  const int64_t covered = total / meta * meta + (row.decode ? meta : 0);
  const int64_t end = (covered + page - 1) / page;
  // A row without work writes nothing, not even the page that its cached tokens end in.
  return {covered == row.cached_tokens ? end : row.cached_tokens / page, end};
}

}  // namespace

StepValidator::StepValidator(const EngineShape& shape, PageChecks checks)
    : shape_(shape),
      checks_(checks),
      copied_from_(shape.num_pages),
      copied_to_(shape.num_pages),
      written_(shape.num_pages) {}

bool StepValidator::PageSet::Insert(PageId page) {
  if (Contains(page)) return false;
  Word(page) |= uint64_t{1} << Bit(page);
  pages_.push_back(page);
  return true;
}

void StepValidator::PageSet::Clear() {
  for (const PageId page : pages_) Word(page) = 0;
  pages_.clear();
}

bool StepValidator::IsPage(PageId page) const {
  const auto id = static_cast<int32_t>(page);
  return id >= 0 && id < shape_.num_pages;
}

absl::Status StepValidator::Validate(std::span<const PageCopy> copies, std::span<const Row> rows) {
  copied_from_.Clear();
  copied_to_.Clear();
  written_.Clear();
  if (absl::Status status = ValidateCopies(copies); !status.ok()) return status;
  if (static_cast<int64_t>(rows.size()) > shape_.max_rows) {
    return Invalid("rows: at most ", shape_.max_rows, " in a step, got ", rows.size());
  }
  int64_t prefill_tokens = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    absl::Status status = ValidateRow(rows[i]);
    if (status.ok()) status = CollectWrites(rows[i]);
    if (!status.ok()) return Invalid("rows[", i, "].", status.message());
    prefill_tokens +=
        static_cast<int64_t>(rows[i].input.size()) / shape_.meta_tokens * shape_.meta_tokens;
  }
  if (prefill_tokens > shape_.max_prefill_tokens) {
    return Invalid("rows: at most ", shape_.max_prefill_tokens,
                   " whole-meta-context input tokens in a step, got ", prefill_tokens);
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (absl::Status status = CheckReads(rows[i]); !status.ok()) {
      return Invalid("rows[", i, "].", status.message());
    }
  }
  return absl::OkStatus();
}

absl::Status StepValidator::ValidateCopies(std::span<const PageCopy> copies) {
  for (size_t i = 0; i < copies.size(); ++i) {
    const auto [from, to] = copies[i];
    if (!IsPage(from) || !IsPage(to)) {
      return Invalid("copies[", i, "]: outside the pool of ", shape_.num_pages, " pages");
    }
    copied_from_.Insert(from);
    if (!copied_to_.Insert(to)) {
      return Invalid("copies[", i, "]: page ", static_cast<int32_t>(to), " is a target twice");
    }
  }
  for (size_t i = 0; i < copies.size(); ++i) {
    if (copied_from_.Contains(copies[i].to)) {
      return Invalid("copies[", i, "]: page ", static_cast<int32_t>(copies[i].to),
                     " is a target and a source");
    }
  }
  return absl::OkStatus();
}

absl::Status StepValidator::ValidateRow(const Row& row) {
  const int meta = shape_.meta_tokens;
  if (row.cached_tokens < 0 || row.cached_tokens % meta != 0) {
    return Invalid("cached_tokens: must be a multiple of ", meta, ", got ", row.cached_tokens);
  }
  const auto input = static_cast<int64_t>(row.input.size());
  if (!row.decode && input % meta != 0) {
    return Invalid("input: without decode must be a multiple of ", meta, " tokens, got ", input);
  }
  const int64_t total = row.cached_tokens + input;
  if (total > shape_.max_context - (row.decode ? 1 : 0)) {
    return Invalid("input: context of ", total, " tokens", row.decode ? " and one more" : "",
                   " exceeds max_context ", shape_.max_context);
  }
  for (TokenId token : row.input) {
    if (token < 0 || token >= shape_.vocab_size) {
      return Invalid("input: token ", token, " is outside the vocabulary of ", shape_.vocab_size);
    }
  }
  const int64_t pages_needed = PagesWritten(shape_, row).end;
  if (static_cast<int64_t>(row.pages.size()) < pages_needed) {
    return Invalid("pages: ", pages_needed, " needed, got ", row.pages.size());
  }
  if (std::find(shape_.modes.begin(), shape_.modes.end(), row.mode) == shape_.modes.end()) {
    return Invalid("mode: not supported by this checkpoint");
  }
  const int64_t logits = int64_t{meta} * shape_.vocab_size;
  if (!row.logits.empty() && static_cast<int64_t>(row.logits.size()) != logits) {
    return Invalid("logits: must be empty or hold ", logits, " values, got ", row.logits.size());
  }
  return ValidateSampling(row.sampling);
}

absl::Status StepValidator::CollectWrites(const Row& row) {
  const auto [begin, end] = PagesWritten(shape_, row);
  for (const PageId page : row.pages.subspan(begin, end - begin)) {
    if (!IsPage(page)) {
      return Invalid("pages: ", static_cast<int32_t>(page), " is outside the pool of ",
                     shape_.num_pages);
    }
    if (!written_.Insert(page)) {
      return Invalid("pages: page ", static_cast<int32_t>(page),
                     " is written twice, or by a row before too");
    }
  }
  return absl::OkStatus();
}

absl::Status StepValidator::CheckReads(const Row& row) const {
  const int64_t end = PagesWritten(shape_, row).begin;
  const int64_t begin = checks_ == PageChecks::kAll ? 0 : std::max<int64_t>(0, end - 1);
  for (const PageId page : row.pages.subspan(begin, end - begin)) {
    if (!IsPage(page)) {
      return Invalid("pages: ", static_cast<int32_t>(page), " is outside the pool of ",
                     shape_.num_pages);
    }
    if (written_.Contains(page)) {
      return Invalid("pages: page ", static_cast<int32_t>(page),
                     " is read, and written in the same step");
    }
  }
  return absl::OkStatus();
}

}  // namespace photon
