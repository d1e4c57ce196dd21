// An engine without a model: its next token is a hash of the tokens before it, so a wrong page, a
// lost token or a mixed-up row changes the output. It refuses, as kInvalidArgument, every row that
// breaks the contract of engine/engine.h, and looks at what the pages hold to find out: reads of
// what was not written, or written after another text; decoding on from a top state that a page no
// longer has; predictions of kRecGen in a sequence that did not make them. Sequences that decode in
// kRecGen must differ in (seed, query, sample), by which it tells them apart.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/engine.h"

namespace photon {

class FakeEngine : public Engine {
 public:
  // The token after `history`.
  using Model = std::function<TokenId(std::span<const TokenId> history, const Sampling& sampling)>;

  static EngineShape DefaultShape() {
    EngineShape shape;
    shape.device = "fake";
    shape.vocab_size = 1000;
    shape.meta_tokens = 4;
    shape.max_context = 128;
    shape.page_tokens = 8;
    shape.num_pages = 32;
    shape.page_bytes = 64;
    shape.max_rows = 4;
    shape.max_prefill_tokens = 16;
    shape.modes = {GenerationMode::kExact, GenerationMode::kHierGen, GenerationMode::kRecGen};
    return shape;
  }

  explicit FakeEngine(EngineShape shape = DefaultShape())
      : shape_(std::move(shape)), pages_(shape_.num_pages) {
    model = [this](std::span<const TokenId> history, const Sampling& sampling) {
      uint64_t hash = 1469598103934665603u ^ sampling.seed;
      for (TokenId token : history) hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
      return static_cast<TokenId>((hash >> 20) % shape_.vocab_size);
    };
  }

  const EngineShape& shape() const override { return shape_; }

  absl::Status Step(std::span<const PageCopy> copies, std::span<const Row> rows,
                    TokenSink& sink) override {
    ++steps;
    last_rows.assign(rows.begin(), rows.end());
    last_copies.assign(copies.begin(), copies.end());
    if (on_step) {
      if (absl::Status status = on_step(rows); !status.ok()) return status;
    }
    if (absl::Status status = CheckCopies(copies); !status.ok()) return status;
    if (absl::Status status = CheckRows(copies, rows); !status.ok()) return status;
    for (const PageCopy& copy : copies) At(copy.to) = At(copy.from);

    std::vector<std::vector<TokenId>> histories(rows.size());
    std::vector<bool> active(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      if (absl::Status status = ReadPages(row, histories[i]); !status.ok()) {
        return absl::InvalidArgumentError(absl::StrCat("row ", i, ": ", status.message()));
      }
      histories[i].insert(histories[i].end(), row.input.begin(), row.input.end());
      active[i] = row.decode;
    }
    for (size_t i = 0; i < rows.size(); ++i) WritePages(rows[i], histories[i], /*author=*/0);
    // Slot by slot, all rows in lock-step, one token a call.
    for (int slot = 0; slot < shape_.meta_tokens; ++slot) {
      for (size_t i = 0; i < rows.size(); ++i) {
        const int tail = static_cast<int>(rows[i].input.size()) % shape_.meta_tokens;
        if (!active[i] || slot < tail) continue;
        SampledToken token;
        token.token = model(histories[i], rows[i].sampling);
        token.logprob = -0.5f;
        std::vector<TokenLogprob> top(rows[i].sampling.top_logprobs);
        for (size_t k = 0; k < top.size(); ++k) {
          top[k].token = (token.token + static_cast<TokenId>(k)) % shape_.vocab_size;
          top[k].logprob = -0.5f - static_cast<float>(k);
        }
        token.top = top;
        histories[i].push_back(token.token);
        active[i] = sink.OnTokens(static_cast<int>(i), {&token, 1});
      }
      sink.OnSlotEnd();
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      if (!active[i]) continue;
      // A meta-context that starts with forced tokens decodes in kExact.
      const bool is_predicted =
          rows[i].mode == GenerationMode::kRecGen && rows[i].input.size() % shape_.meta_tokens == 0;
      WritePages(rows[i], histories[i], is_predicted ? Author(rows[i]) : 0);
    }
    return absl::OkStatus();
  }

  Model model;
  // Called first in each step, for example to wait in it; an error fails the step.
  std::function<absl::Status(std::span<const Row>)> on_step;
  int steps = 0;
  std::vector<Row> last_rows;  // their spans dangle after the step, their sizes do not
  std::vector<PageCopy> last_copies;

 private:
  struct Page {
    uint64_t text_before = 0;       // a hash of all tokens before the page
    std::vector<TokenId> tokens;    // up to the newest written, where the top state is
    std::vector<uint64_t> authors;  // by meta-context: whose predictions it is; 0: nobody's
  };

  template <typename... Parts>
  static absl::Status Invalid(const Parts&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(parts...));
  }

  static uint64_t Hash(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 29;
  }

  static uint64_t Author(const Row& row) {
    const Sampling& sampling = row.sampling;
    return Hash(Hash(Hash(1, sampling.seed), sampling.query), sampling.sample) | 1;
  }

  Page& At(PageId page) { return pages_[static_cast<int>(page)]; }
  bool IsPage(PageId page) const {
    return static_cast<int>(page) >= 0 && static_cast<int>(page) < shape_.num_pages;
  }

  absl::Status CheckCopies(std::span<const PageCopy> copies) const {
    std::set<PageId> sources, targets;
    for (const PageCopy& copy : copies) {
      if (!IsPage(copy.from) || !IsPage(copy.to)) return Invalid("a copy outside the pool");
      sources.insert(copy.from);
      if (!targets.insert(copy.to).second) return Invalid("a page is the target of two copies");
    }
    for (PageId target : targets) {
      if (sources.contains(target)) return Invalid("a page is copied from and to");
    }
    return absl::OkStatus();
  }

  absl::Status CheckRows(std::span<const PageCopy> copies, std::span<const Row> rows) const {
    const int meta = shape_.meta_tokens;
    if (rows.empty()) return Invalid("no rows");
    if (static_cast<int>(rows.size()) > shape_.max_rows) return Invalid("too many rows");
    int prefill = 0;
    std::set<PageId> written, read;
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      const int input = static_cast<int>(row.input.size());
      if (row.cached_tokens < 0 || row.cached_tokens % meta != 0) {
        return Invalid("row ", i, ": cached_tokens");
      }
      // Neither this nor a copy that nobody writes would trouble an engine; both are waste.
      if (!row.decode && input == 0) return Invalid("row ", i, ": nothing to do");
      if (!row.decode && input % meta != 0) return Invalid("row ", i, ": tail without decode");
      prefill += input / meta * meta;
      const int end = row.cached_tokens + input / meta * meta + (row.decode ? meta : 0);
      if (end > shape_.max_context) return Invalid("row ", i, ": beyond the context");
      if (end > static_cast<int>(row.pages.size()) * shape_.page_tokens) {
        return Invalid("row ", i, ": too few pages");
      }
      const int first_written = row.cached_tokens / shape_.page_tokens;
      for (int p = 0; p * shape_.page_tokens < end; ++p) {
        const PageId page = row.pages[p];
        if (!IsPage(page)) return Invalid("row ", i, ": page outside the pool");
        if (p < first_written) {
          read.insert(page);
        } else if (!written.insert(page).second) {
          return Invalid("row ", i, ": page ", static_cast<int>(page), " is written twice");
        }
      }
      for (TokenId token : row.input) {
        if (token < 0 || token >= shape_.vocab_size) return Invalid("row ", i, ": token ", token);
      }
      if (std::find(shape_.modes.begin(), shape_.modes.end(), row.mode) == shape_.modes.end()) {
        return Invalid("row ", i, ": mode");
      }
    }
    if (prefill > shape_.max_prefill_tokens) return Invalid("prefill of ", prefill, " tokens");
    for (PageId page : read) {
      if (written.contains(page)) {
        return Invalid("page ", static_cast<int>(page), " is read and written");
      }
    }
    for (const PageCopy& copy : copies) {
      if (!written.contains(copy.to)) return Invalid("a page is copied to and not written");
    }
    return absl::OkStatus();
  }

  // Appends what the pages hold of the row's cached tokens to `tokens`.
  absl::Status ReadPages(const Row& row, std::vector<TokenId>& tokens) {
    const int meta = shape_.meta_tokens;
    uint64_t text = 0;
    for (int begin = 0; begin < row.cached_tokens; begin += shape_.page_tokens) {
      const PageId id = row.pages[begin / shape_.page_tokens];
      const Page& page = At(id);
      const int held = static_cast<int>(page.tokens.size());
      const int wanted = std::min(shape_.page_tokens, row.cached_tokens - begin);
      const bool is_last = begin + wanted == row.cached_tokens;
      if (held < wanted) {
        return Invalid("reads ", wanted, " tokens of page ", static_cast<int>(id), ", which holds ",
                       held);
      }
      if (page.text_before != text) {
        return Invalid("page ", static_cast<int>(id), " was written after another text");
      }
      if (is_last && static_cast<int>(row.input.size()) < meta && held != wanted) {
        return Invalid("decodes on from token ", wanted, " of page ", static_cast<int>(id),
                       ", whose top state is that of token ", held);
      }
      for (int t = 0; t < wanted; ++t) {
        const uint64_t author = page.authors[t / meta];
        if (author != 0 && (row.mode != GenerationMode::kRecGen || author != Author(row))) {
          return Invalid("page ", static_cast<int>(id), " holds another sequence's predictions");
        }
        if (author != 0 && static_cast<int>(row.input.size()) >= meta) {
          return Invalid("page ", static_cast<int>(id), " has no lower levels to go on from");
        }
        tokens.push_back(page.tokens[t]);
        text = Hash(text, page.tokens[t]);
      }
    }
    return absl::OkStatus();
  }

  // Writes the whole meta-contexts of `history` that the row's pages do not hold yet.
  void WritePages(const Row& row, const std::vector<TokenId>& history, uint64_t author) {
    const int meta = shape_.meta_tokens;
    const int end = static_cast<int>(history.size()) / meta * meta;
    // What is decoded follows the whole meta-contexts of input.
    const int input_end = row.cached_tokens + static_cast<int>(row.input.size()) / meta * meta;
    const int begin = end > input_end ? input_end : row.cached_tokens;
    uint64_t text = 0;
    for (int t = 0; t < end; ++t) {
      const int offset = t % shape_.page_tokens;
      if (t >= begin) {
        Page& page = At(row.pages[t / shape_.page_tokens]);
        if (offset == 0) page.text_before = text;
        page.tokens.resize(offset);
        page.tokens.push_back(history[t]);
        page.authors.resize(offset / meta);
        page.authors.push_back(author);
      }
      text = Hash(text, history[t]);
    }
  }

  const EngineShape shape_;
  std::vector<Page> pages_;
};

// What `engine` generates after `prompt`, computed without pages or steps.
inline std::vector<TokenId> Continue(const FakeEngine& engine, std::vector<TokenId> prompt,
                                     int max_tokens, const Sampling& sampling = {}) {
  std::vector<TokenId> output;
  for (int i = 0; i < max_tokens; ++i) {
    output.push_back(engine.model(prompt, sampling));
    prompt.push_back(output.back());
  }
  return output;
}

}  // namespace photon
