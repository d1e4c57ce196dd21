#include "tests/engine/cpu/shared_pages.h"

#include <algorithm>
#include <bit>

#include "gtest/gtest.h"

namespace photon {
namespace {

class RecordingSink final : public TokenSink {
 public:
  RecordingSink(std::span<Decoded> decoded, std::span<const int> stop_after)
      : decoded_(decoded), stop_after_(stop_after) {}

  bool OnTokens(int row, std::span<const SampledToken> tokens) override {
    Decoded& decoded = decoded_[row];
    for (const SampledToken& token : tokens) {
      decoded.tokens.push_back(token.token);
      decoded.logprobs.push_back(token.logprob);
      decoded.tops.emplace_back(token.top.begin(), token.top.end());
    }
    return static_cast<int>(decoded.tokens.size()) < stop_after_[row];
  }

 private:
  std::span<Decoded> decoded_;
  std::span<const int> stop_after_;
};

bool SameBits(std::span<const float> a, std::span<const float> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  });
}

void ExpectSame(const Decoded& got, const Decoded& expected) {
  ASSERT_EQ(got.tokens, expected.tokens) << "at " << got.first_token;
  ASSERT_TRUE(SameBits(got.logprobs, expected.logprobs)) << "at " << got.first_token;
  ASSERT_TRUE(SameBits(got.logits, expected.logits)) << "at " << got.first_token;
  for (size_t t = 0; t < got.tops.size(); ++t) {
    ASSERT_EQ(got.tops[t].size(), expected.tops[t].size());
    for (size_t i = 0; i < got.tops[t].size(); ++i) {
      ASSERT_EQ(got.tops[t][i].token, expected.tops[t][i].token) << "at " << got.first_token;
      ASSERT_EQ(got.tops[t][i].logprob, expected.tops[t][i].logprob) << "at " << got.first_token;
    }
  }
}

// Decodes one meta-context of a sequence that is alone in the engine, on pages 0 and up.
Decoded DecodeAlone(Engine& engine, const Decoded& like, std::span<const TokenId> tokens,
                    int cached_tokens) {
  const EngineShape& shape = engine.shape();
  std::vector<PageId> pages;
  for (int i = 0; i * shape.page_tokens <= shape.max_context; ++i) pages.push_back(PageId{i});
  Decoded decoded;
  if (like.want_logits) decoded.logits.resize(int64_t{shape.meta_tokens} * shape.vocab_size);
  const Row row{.cached_tokens = cached_tokens,
                .input = tokens.subspan(cached_tokens),
                .pages = pages,
                .mode = like.mode,
                .sampling = like.sampling,
                .logits = decoded.logits};
  const int never = 1000;
  RecordingSink sink(std::span(&decoded, 1), std::span(&never, 1));
  const absl::Status status = engine.Step({}, std::span(&row, 1), sink);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return decoded;
}

}  // namespace

SharedPool::SharedPool(Engine& engine, uint64_t seed)
    : engine_(engine), shape_(engine.shape()), references_(shape_.num_pages) {
  for (int i = 0; i < shape_.num_pages; ++i) free_.push_back(PageId{i});
  std::shuffle(free_.begin(), free_.end(), std::mt19937_64(seed));
}

PageId SharedPool::Take() {
  EXPECT_FALSE(free_.empty());
  const PageId page = free_.back();
  free_.pop_back();
  references_[static_cast<int32_t>(page)] = 1;
  return page;
}

SharedSequence SharedPool::Fork(const SharedSequence& parent, int boundary,
                                std::span<const TokenId> more) {
  EXPECT_EQ(boundary % shape_.meta_tokens, 0);
  EXPECT_LE(boundary, parent.cached_tokens);
  EXPECT_TRUE(parent.has_run);
  SharedSequence fork = parent;
  fork.tokens.resize(boundary);
  fork.tokens.insert(fork.tokens.end(), more.begin(), more.end());
  std::erase_if(fork.history, [&](const Decoded& d) { return d.first_token >= boundary; });
  fork.pages.resize((boundary + shape_.page_tokens - 1) / shape_.page_tokens);
  for (PageId page : fork.pages) ++references_[static_cast<int32_t>(page)];
  fork.cached_tokens = boundary;
  fork.has_run = false;
  if (boundary % shape_.page_tokens != 0) {
    // The reference to the source lasts until the copy is done.
    const PageId source = fork.pages.back();
    copy_sources_.push_back(source);
    fork.pages.back() = Take();
    copies_.push_back({.from = source, .to = fork.pages.back()});
    const bool has_top_state = boundary == parent.cached_tokens;
    if (!has_top_state) fork.cached_tokens -= shape_.meta_tokens;
  }
  return fork;
}

void SharedPool::Release(SharedSequence& sequence) {
  for (PageId page : sequence.pages) {
    if (--references_[static_cast<int32_t>(page)] == 0) free_.push_back(page);
  }
  sequence.pages.clear();
  sequence.cached_tokens = 0;
}

bool SharedPool::CanDecode(const SharedSequence& sequence) const {
  return static_cast<int>(sequence.tokens.size()) + shape_.meta_tokens <= shape_.max_context;
}

void SharedPool::Step(std::span<const Part> parts) {
  const int meta = shape_.meta_tokens;
  std::vector<Row> rows;
  std::vector<Decoded> decoded(parts.size());
  std::vector<int> stop_after;
  for (size_t i = 0; i < parts.size(); ++i) {
    SharedSequence& s = *parts[i].sequence;
    std::span<const TokenId> input = std::span(s.tokens).subspan(s.cached_tokens);
    const bool decode = parts[i].prefill_metas == 0;
    if (!decode) {
      input = input.first(std::min<size_t>(parts[i].prefill_metas, input.size() / meta) * meta);
    }
    const size_t covered = (s.cached_tokens + input.size()) / meta * meta + (decode ? meta : 0);
    while (s.pages.size() * shape_.page_tokens < covered) s.pages.push_back(Take());
    decoded[i] = {.first_token = static_cast<int>(s.tokens.size()) / meta * meta,
                  .num_given = static_cast<int>(s.tokens.size()),
                  .mode = s.mode,
                  .sampling = s.sampling,
                  .want_logits = s.want_logits};
    if (decode && s.want_logits) decoded[i].logits.resize(int64_t{meta} * shape_.vocab_size);
    stop_after.push_back(parts[i].stop_after);
    rows.push_back({.cached_tokens = s.cached_tokens,
                    .input = input,
                    .pages = s.pages,
                    .decode = decode,
                    .mode = s.mode,
                    .sampling = s.sampling,
                    .logits = decoded[i].logits});
  }
  RecordingSink sink(decoded, stop_after);
  const absl::Status status = engine_.Step(copies_, rows, sink);
  ASSERT_TRUE(status.ok()) << status.ToString();
  copies_.clear();
  for (PageId page : copy_sources_) {
    if (--references_[static_cast<int32_t>(page)] == 0) free_.push_back(page);
  }
  copy_sources_.clear();
  for (size_t i = 0; i < parts.size(); ++i) {
    SharedSequence& s = *parts[i].sequence;
    s.has_run = true;
    s.cached_tokens += static_cast<int>(rows[i].input.size()) / meta * meta;
    if (!rows[i].decode) continue;
    if (static_cast<int>(decoded[i].tokens.size()) >= parts[i].stop_after) continue;
    s.tokens.insert(s.tokens.end(), decoded[i].tokens.begin(), decoded[i].tokens.end());
    s.cached_tokens += meta;
    ASSERT_EQ(s.cached_tokens, static_cast<int>(s.tokens.size()));
    s.history.push_back(std::move(decoded[i]));
  }
}

void SharedPool::Decode(std::span<SharedSequence* const> sequences) {
  std::vector<Part> parts;
  for (SharedSequence* sequence : sequences) parts.push_back({.sequence = sequence});
  Step(parts);
}

void ExpectAsUnshared(Engine& engine, const SharedSequence& sequence) {
  int cached_tokens = 0;
  for (const Decoded& decoded : sequence.history) {
    const auto given = std::span(sequence.tokens).first(decoded.num_given);
    const Decoded alone = DecodeAlone(engine, decoded, given, cached_tokens);
    ExpectSame(decoded, alone);
    if (testing::Test::HasFatalFailure()) return;
    cached_tokens = decoded.first_token + engine.shape().meta_tokens;
  }
}

void ExpectAsRebuiltFromTokens(Engine& engine, const SharedSequence& sequence) {
  for (const Decoded& decoded : sequence.history) {
    const auto given = std::span(sequence.tokens).first(decoded.num_given);
    ExpectSame(decoded, DecodeAlone(engine, decoded, given, 0));
    if (testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace photon
