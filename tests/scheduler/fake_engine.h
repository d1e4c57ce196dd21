// An engine without a model: its next token is a hash of the tokens before it, so a wrong page, a
// lost token or a mixed-up row changes the output. It refuses, as kInvalidArgument, every row that
// breaks the contract of engine/engine.h.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
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
    shape.modes = {GenerationMode::kExact, GenerationMode::kHierGen};
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
    if (on_step) {
      if (absl::Status status = on_step(rows); !status.ok()) return status;
    }
    if (absl::Status status = CheckRows(rows); !status.ok()) return status;
    for (const PageCopy& copy : copies) {
      pages_[static_cast<int>(copy.to)] = pages_[static_cast<int>(copy.from)];
    }

    std::vector<std::vector<TokenId>> histories(rows.size());
    std::vector<bool> active(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      histories[i] = ReadPages(row);
      histories[i].insert(histories[i].end(), row.input.begin(), row.input.end());
      WritePages(row, histories[i]);
      active[i] = row.decode;
    }
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
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      if (active[i]) WritePages(rows[i], histories[i]);
    }
    return absl::OkStatus();
  }

  Model model;
  // Called first in each step, for example to wait in it; an error fails the step.
  std::function<absl::Status(std::span<const Row>)> on_step;
  int steps = 0;
  std::vector<Row> last_rows;  // their spans dangle after the step, their sizes do not

 private:
  absl::Status CheckRows(std::span<const Row> rows) const {
    const auto invalid = [](auto&&... parts) {
      return absl::InvalidArgumentError(absl::StrCat(parts...));
    };
    const int meta = shape_.meta_tokens;
    if (rows.empty()) return invalid("no rows");
    if (static_cast<int>(rows.size()) > shape_.max_rows) return invalid("too many rows");
    int prefill = 0;
    std::map<PageId, size_t> writers;
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      const int input = static_cast<int>(row.input.size());
      if (row.cached_tokens % meta != 0) return invalid("row ", i, ": cached_tokens");
      if (!row.decode && input % meta != 0) return invalid("row ", i, ": tail without decode");
      prefill += input / meta * meta;
      const int end = row.cached_tokens + input / meta * meta + (row.decode ? meta : 0);
      if (end > shape_.max_context) return invalid("row ", i, ": beyond the context");
      if (end > static_cast<int>(row.pages.size()) * shape_.page_tokens) {
        return invalid("row ", i, ": too few pages");
      }
      for (int t = row.cached_tokens; t < end; t += meta) {
        const PageId page = row.pages[t / shape_.page_tokens];
        if (writers.try_emplace(page, i).first->second != i) return invalid("page has two writers");
      }
      for (TokenId token : row.input) {
        if (token < 0 || token >= shape_.vocab_size) return invalid("row ", i, ": token ", token);
      }
    }
    if (prefill > shape_.max_prefill_tokens) return invalid("prefill of ", prefill, " tokens");
    return absl::OkStatus();
  }

  std::vector<TokenId> ReadPages(const Row& row) const {
    std::vector<TokenId> tokens;
    for (int t = 0; t < row.cached_tokens; ++t) {
      const std::vector<TokenId>& page =
          pages_[static_cast<int>(row.pages[t / shape_.page_tokens])];
      const size_t offset = t % shape_.page_tokens;
      tokens.push_back(offset < page.size() ? page[offset] : -1);
    }
    return tokens;
  }

  // Writes the whole meta-contexts of `history` after the row's cached tokens.
  void WritePages(const Row& row, const std::vector<TokenId>& history) {
    const int end = static_cast<int>(history.size()) / shape_.meta_tokens * shape_.meta_tokens;
    for (int t = row.cached_tokens; t < end; ++t) {
      std::vector<TokenId>& page = pages_[static_cast<int>(row.pages[t / shape_.page_tokens])];
      page.resize(t % shape_.page_tokens);
      page.push_back(history[t]);
    }
  }

  const EngineShape shape_;
  std::vector<std::vector<TokenId>> pages_;  // the tokens that each page holds
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
