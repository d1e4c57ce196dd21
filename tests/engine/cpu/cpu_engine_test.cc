#include "engine/cpu/cpu_engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "engine/cpu/host_memory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/cpu/engine_fixtures.h"
#include "tests/engine/cpu/reference_model.h"

namespace photon {
namespace {

using ::testing::HasSubstr;

// fp32 rounding through a few dozen layers' worth of sums.
constexpr double kFloatTolerance = 1e-5;
// bf16 rounds with a relative error of up to 2^-9. Three encoders and three decoders round about 60
// times along a path: 2^-9 * sqrt(60) is 1.5 %, and weights are rounded as well.
constexpr double kBFloat16Tolerance = 0.03;

constexpr Sampling kGreedy{.temperature = 0};

void ExpectLogitsMatchTheReference(const NamedConfig& named, const CpuEngineOptions& options,
                                   double tolerance) {
  const auto checkpoint = RandomCheckpoint(named.config);
  const auto engine = MakeEngine(*checkpoint, options);
  ReferenceModel reference(*checkpoint);
  const auto tokens = RandomTokens(3 * named.config.meta_tokens() + 2, named.config.vocab_size, 7);
  const auto expected = reference.Logits(tokens);
  const auto logits = TeacherForcedLogits(*engine, tokens);
  ASSERT_EQ(logits.size(), tokens.size());
  std::vector<float> all;
  std::vector<double> all_expected;
  for (size_t i = 0; i < tokens.size(); ++i) {
    all.insert(all.end(), logits[i].begin(), logits[i].end());
    all_expected.insert(all_expected.end(), expected[i].begin(), expected[i].end());
  }
  EXPECT_LT(RelativeError(all, all_expected), tolerance)
      << named.name << ", " << engine->shape().device;
}

TEST(CpuEngine, LogitsMatchTheReferenceInFp32) {
  for (const NamedConfig& named : SmallConfigs()) {
    ExpectLogitsMatchTheReference(named, SmallOptions(), kFloatTolerance);
  }
}

TEST(CpuEngine, EveryInstructionSetMatchesTheReference) {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (!IsaSupported(isa)) continue;
    CpuEngineOptions options = SmallOptions();
    options.isa = isa;
    ExpectLogitsMatchTheReference(SmallConfigs()[1], options, kFloatTolerance);
    options.compute = CpuEngineOptions::Compute::kBF16;
    for (const NamedConfig& named : SmallConfigs()) {
      ExpectLogitsMatchTheReference(named, options, kBFloat16Tolerance);
    }
  }
}

TEST(CpuEngine, ExactGreedyEqualsRepeatedFullForwardPasses) {
  for (const NamedConfig& named : SmallConfigs()) {
    const auto checkpoint = RandomCheckpoint(named.config);
    const auto engine = MakeEngine(*checkpoint);
    ReferenceModel reference(*checkpoint);
    const int meta = named.config.meta_tokens();
    // Every prompt length modulo the meta-context, the empty prompt included.
    for (int length = 0; length <= 2 * meta; length += length < meta ? 1 : 3) {
      const auto prompt = RandomTokens(length, named.config.vocab_size, 100 + length);
      const Generated generated = Generate(*engine, prompt, 2);
      std::vector<TokenId> tokens = prompt;
      for (size_t i = 0; i < generated.tokens.size(); ++i) {
        const TokenId expected = reference.GreedyNext(tokens);
        ASSERT_EQ(generated.tokens[i], expected)
            << named.name << ", prompt of " << length << ", token " << i;
        tokens.push_back(expected);
      }
    }
  }
}

TEST(CpuEngine, ATokenChangesNothingBeforeItAndSomethingAfterIt) {
  for (const NamedConfig& named : SmallConfigs()) {
    const auto checkpoint = RandomCheckpoint(named.config);
    const auto engine = MakeEngine(*checkpoint);
    const int meta = named.config.meta_tokens();
    const auto tokens = RandomTokens(3 * meta, named.config.vocab_size, 3);
    const auto before = TeacherForcedLogits(*engine, tokens);
    for (int p : {0, 1, meta - 1, meta, meta + meta / 2, 2 * meta - 1}) {
      auto changed = tokens;
      changed[p] = (changed[p] + 1) % named.config.vocab_size;
      const auto after = TeacherForcedLogits(*engine, changed);
      for (int i = 0; i <= p; ++i) {
        EXPECT_EQ(after[i], before[i]) << named.name << ": token " << p << " changed " << i;
      }
      EXPECT_NE(after[p + 1], before[p + 1]) << named.name << ": token " << p;
      EXPECT_NE(after.back(), before.back()) << named.name << ": token " << p;
    }
  }
}

TEST(CpuEngine, AnySplitOfThePrefillGivesTheSameState) {
  for (const NamedConfig& named : SmallConfigs()) {
    const auto checkpoint = RandomCheckpoint(named.config);
    const std::vector<GenerationMode> modes = MakeEngine(*checkpoint)->shape().modes;
    for (const GenerationMode mode : modes) {
      const auto engine = MakeEngine(*checkpoint);
      const EngineShape& shape = engine->shape();
      const int metas = 7;
      const auto prompt = RandomTokens(metas * shape.meta_tokens + 1, shape.vocab_size, 5);
      const Generated whole = Generate(*engine, prompt, 3, mode, kGreedy, true);
      for (uint64_t seed = 0; seed < 4; ++seed) {
        std::mt19937_64 random(seed);
        Sequence sequence(shape, prompt, 20, mode);
        for (int left = metas; left > 0;) {
          const int piece = 1 + static_cast<int>(random() % left);
          const Row row = sequence.PrefillRow(piece);
          struct NoTokens final : TokenSink {
            bool OnTokens(int, std::span<const SampledToken>) override { return false; }
          } sink;
          ASSERT_TRUE(engine->Step({}, std::span(&row, 1), sink).ok());
          sequence.Prefilled(row);
          left -= piece;
        }
        Sequence* sequences[] = {&sequence};
        RunSteps(*engine, sequences, 3, true);
        EXPECT_TRUE(sequence.generated() == whole) << named.name << ", split " << seed;
      }
    }
  }
}

TEST(CpuEngine, ABatchOfManyEqualsBatchesOfOneBitForBit) {
  for (const auto compute : {CpuEngineOptions::Compute::kF32, CpuEngineOptions::Compute::kBF16}) {
    for (const NamedConfig& named : SmallConfigs()) {
      CpuEngineOptions options = SmallOptions();
      options.compute = compute;
      options.threads = 3;
      const auto checkpoint = RandomCheckpoint(named.config);
      const auto engine = MakeEngine(*checkpoint, options);
      const EngineShape& shape = engine->shape();
      std::vector<std::unique_ptr<Sequence>> owned;
      std::vector<Sequence*> sequences;
      std::vector<Generated> alone;
      for (int i = 0; i < 13; ++i) {
        const auto prompt = RandomTokens(i * 5 % 23, shape.vocab_size, i);
        const GenerationMode mode = shape.modes[i % shape.modes.size()];
        const Sampling sampling{.temperature = i % 3 * 0.7f,
                                .top_k = i % 4 * 5,
                                .top_p = i % 2 == 0 ? 1.0f : 0.9f,
                                .seed = static_cast<uint64_t>(i)};
        alone.push_back(Generate(*engine, prompt, 3, mode, sampling, true));
        owned.push_back(std::make_unique<Sequence>(shape, prompt, 30 * i, mode, sampling));
        sequences.push_back(owned.back().get());
      }
      RunSteps(*engine, sequences, 3, true);
      for (size_t i = 0; i < sequences.size(); ++i) {
        EXPECT_EQ(sequences[i]->generated().tokens, alone[i].tokens) << named.name << " row " << i;
        EXPECT_EQ(sequences[i]->generated().logprobs, alone[i].logprobs);
        const auto& logits = sequences[i]->generated().logits;
        ASSERT_EQ(logits.size(), alone[i].logits.size());
        // Compared as bytes: slots that a row never computes hold NaN in both.
        EXPECT_EQ(memcmp(logits.data(), alone[i].logits.data(), logits.size() * sizeof(float)), 0);
      }
    }
  }
}

TEST(CpuEngine, ThreadsChangeNothing) {
  const NamedConfig named = SmallConfigs()[0];
  const auto checkpoint = RandomCheckpoint(named.config);
  const auto prompt = RandomTokens(70, named.config.vocab_size, 11);
  const Generated one = Generate(*MakeEngine(*checkpoint), prompt, 3);
  CpuEngineOptions options = SmallOptions();
  options.threads = 4;
  EXPECT_TRUE(Generate(*MakeEngine(*checkpoint, options), prompt, 3) == one);
}

TEST(CpuEngine, WithOneLevelHierGenIsExactAndRecGenIsRefused) {
  const NamedConfig named = SmallConfigs()[3];
  const auto checkpoint = RandomCheckpoint(named.config);
  const auto engine = MakeEngine(*checkpoint);
  const auto prompt = RandomTokens(10, named.config.vocab_size, 1);
  EXPECT_TRUE(Generate(*engine, prompt, 3, GenerationMode::kHierGen) ==
              Generate(*engine, prompt, 3, GenerationMode::kExact));
  Sequence sequence(engine->shape(), prompt, 0, GenerationMode::kRecGen);
  const Row row = sequence.NextRow(false);
  struct NoTokens final : TokenSink {
    bool OnTokens(int, std::span<const SampledToken>) override { return true; }
  } sink;
  EXPECT_EQ(engine->Step({}, std::span(&row, 1), sink).code(), absl::StatusCode::kInvalidArgument);
}

TEST(CpuEngine, AMetaContextWithForcedTokensIsTheSameInEveryMode) {
  const NamedConfig named = SmallConfigs()[0];
  const auto checkpoint = RandomCheckpoint(named.config);
  const auto engine = MakeEngine(*checkpoint);
  const auto prompt = RandomTokens(21, named.config.vocab_size, 2);
  const Generated exact = Generate(*engine, prompt, 1, GenerationMode::kExact);
  EXPECT_TRUE(Generate(*engine, prompt, 1, GenerationMode::kHierGen) == exact);
  EXPECT_TRUE(Generate(*engine, prompt, 1, GenerationMode::kRecGen) == exact);
}

// Ends row 0 after `limit` tokens and keeps the others.
class LimitedSink final : public TokenSink {
 public:
  explicit LimitedSink(size_t limit) : limit_(limit) {}

  bool OnTokens(int row, std::span<const SampledToken> tokens) override {
    if (row != 0) return true;
    EXPECT_LT(seen_, limit_) << "tokens after the row ended";
    seen_ += tokens.size();
    return seen_ < limit_;
  }
  size_t seen() const { return seen_; }

 private:
  size_t limit_;
  size_t seen_ = 0;
};

TEST(CpuEngine, ARowThatEndsReportsNoMoreAndLeavesOthersAlone) {
  const NamedConfig named = SmallConfigs()[0];
  const auto checkpoint = RandomCheckpoint(named.config);
  const std::vector<GenerationMode> modes = MakeEngine(*checkpoint)->shape().modes;
  for (const GenerationMode mode : modes) {
    const auto engine = MakeEngine(*checkpoint);
    const auto prompt = RandomTokens(16, named.config.vocab_size, 4);
    Sequence ending(engine->shape(), prompt, 0, mode), going(engine->shape(), prompt, 20, mode);
    const Row rows[] = {ending.NextRow(false), going.NextRow(true)};
    LimitedSink sink(3);
    ASSERT_TRUE(engine->Step({}, rows, sink).ok());
    EXPECT_GE(sink.seen(), 3u);
    const Generated alone = Generate(*engine, prompt, 1, mode, kGreedy, true);
    EXPECT_TRUE(std::equal(rows[1].logits.begin(), rows[1].logits.end(), alone.logits.begin()));
  }
}

TEST(CpuEngine, ACopiedPageCarriesTheSequenceOn) {
  const NamedConfig named = SmallConfigs()[0];
  const auto checkpoint = RandomCheckpoint(named.config);
  const auto engine = MakeEngine(*checkpoint);
  const EngineShape& shape = engine->shape();
  ASSERT_EQ(shape.page_tokens, 2 * shape.meta_tokens);
  const auto prompt = RandomTokens(3 * shape.meta_tokens, shape.vocab_size, 6);
  const Generated whole = Generate(*engine, prompt, 2);

  // Pages 0 and 1 hold the prompt, page 1 half full. The fork reads page 0 and writes its own copy.
  Sequence original(shape, prompt, 0);
  const Row prefill = original.PrefillRow(3);
  LimitedSink sink(1000);
  ASSERT_TRUE(engine->Step({}, std::span(&prefill, 1), sink).ok());
  const std::vector<PageId> pages = {PageId{0}, PageId{50}};
  const PageCopy copy{.from = PageId{1}, .to = PageId{50}};
  std::vector<float> logits(int64_t{shape.meta_tokens} * shape.vocab_size);
  const Row fork{.cached_tokens = 3 * shape.meta_tokens,
                 .pages = pages,
                 .sampling = kGreedy,
                 .logits = logits};
  ASSERT_TRUE(engine->Step(std::span(&copy, 1), std::span(&fork, 1), sink).ok());
  const Generated expected = Generate(*engine, prompt, 1, GenerationMode::kExact, kGreedy, true);
  EXPECT_EQ(logits, expected.logits);
}

TEST(CpuEngine, AMetaContextGivenAgainResumesInsideAPage) {
  const NamedConfig named = SmallConfigs()[1];
  const auto checkpoint = RandomCheckpoint(named.config);
  const auto engine = MakeEngine(*checkpoint);
  const EngineShape& shape = engine->shape();
  const auto prompt = RandomTokens(5 * shape.meta_tokens, shape.vocab_size, 8);
  const Generated whole = Generate(*engine, prompt, 1, GenerationMode::kExact, kGreedy, true);
  // The page's top state belongs to a later boundary now: step back by one meta-context.
  Generate(*engine, prompt, 3);
  std::vector<PageId> pages;
  for (int i = 0; i < 10; ++i) pages.push_back(PageId{i});
  std::vector<float> logits(whole.logits.size());
  const Row row{.cached_tokens = 4 * shape.meta_tokens,
                .input = std::span(prompt).subspan(4 * shape.meta_tokens),
                .pages = pages,
                .sampling = kGreedy,
                .logits = logits};
  LimitedSink sink(1000);
  ASSERT_TRUE(engine->Step({}, std::span(&row, 1), sink).ok());
  EXPECT_EQ(logits, whole.logits);
}

TEST(CpuEngine, RowsThatBreakTheShapeAreRefusedByName) {
  const NamedConfig named = SmallConfigs()[0];
  const auto checkpoint = RandomCheckpoint(named.config);
  const auto engine = MakeEngine(*checkpoint);
  const std::vector<TokenId> tokens = {1, 2, 3}, bad_tokens = {1, 67};
  const std::vector<PageId> pages = {PageId{0}, PageId{1}}, bad_pages = {PageId{-1}};
  std::vector<float> logits(5);
  const Row good{.input = tokens, .pages = pages};
  struct Case {
    void (*change)(Row&, const std::vector<TokenId>&, const std::vector<PageId>&,
                   std::vector<float>&);
    const char* message;
  };
  const std::vector<Case> cases = {
      {[](Row& r, auto&, auto&, auto&) { r.cached_tokens = 8; }, "rows[0].cached_tokens"},
      {[](Row& r, auto&, auto&, auto&) { r.cached_tokens = -16; }, "rows[0].cached_tokens"},
      {[](Row& r, auto&, auto&, auto&) { r.cached_tokens = 256; }, "max_context 256"},
      {[](Row& r, auto&, auto&, auto&) { r.decode = false; }, "rows[0].input"},
      {[](Row& r, auto& t, auto&, auto&) { r.input = t; }, "token 67"},
      {[](Row& r, auto&, auto& p, auto&) { r.pages = p; }, "rows[0].pages: -1"},
      {[](Row& r, auto&, auto&, auto&) { r.pages = {}; }, "rows[0].pages: 1 needed"},
      {[](Row& r, auto&, auto&, auto& l) { r.logits = l; }, "rows[0].logits"},
      {[](Row& r, auto&, auto&, auto&) { r.sampling.temperature = NAN; }, "sampling.temperature"},
      {[](Row& r, auto&, auto&, auto&) { r.sampling.top_k = -1; }, "sampling.top_k"},
      {[](Row& r, auto&, auto&, auto&) { r.sampling.top_p = 0; }, "sampling.top_p"},
      {[](Row& r, auto&, auto&, auto&) { r.sampling.min_p = 1.5f; }, "sampling.min_p"},
      {[](Row& r, auto&, auto&, auto&) { r.sampling.top_logprobs = 21; }, "sampling.top_logprobs"},
  };
  LimitedSink sink(0);
  for (const Case& c : cases) {
    Row row = good;
    c.change(row, bad_tokens, bad_pages, logits);
    const absl::Status status = engine->Step({}, std::span(&row, 1), sink);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
  const Row twice[] = {good, good};
  EXPECT_THAT(std::string(engine->Step({}, twice, sink).message()),
              HasSubstr("rows[1].pages: page 0 is written"));
}

TEST(CpuEngine, OptionsOutOfRangeAreRefusedByName) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  CpuEngineOptions options = SmallOptions();
  options.kv_memory = MemoryBudget::Bytes(100);
  EXPECT_EQ(CreateCpuEngine(*checkpoint, options).status().code(),
            absl::StatusCode::kResourceExhausted);
  options.kv_memory = MemoryBudget::ShareOfFree(1e-12);
  const absl::Status too_little = CreateCpuEngine(*checkpoint, options).status();
  EXPECT_EQ(too_little.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(too_little.message()), HasSubstr("a page of 32 tokens takes"));
  options.kv_memory = MemoryBudget::Bytes(0);
  EXPECT_THAT(std::string(CreateCpuEngine(*checkpoint, options).status().message()),
              HasSubstr("kv_memory"));
  options = SmallOptions();
  options.max_rows = 0;
  EXPECT_THAT(std::string(CreateCpuEngine(*checkpoint, options).status().message()),
              HasSubstr("max_rows"));
}

TEST(CpuEngine, AShareOfTheFreeMemoryMakesAsManyPagesAsItHolds) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  CpuEngineOptions options = SmallOptions();
  // The others of the machine take and give back memory meanwhile: a factor of two is left to them.
  options.kv_memory = MemoryBudget::ShareOfFree(1e-3);
  const auto free = FreeHostMemory();
  ASSERT_TRUE(free.ok());
  const auto engine = MakeEngine(*checkpoint, options);
  const double pool = double{1} * engine->shape().num_pages * engine->shape().page_bytes;
  EXPECT_GT(pool, 0.5e-3 * static_cast<double>(*free));
  EXPECT_LT(pool, 2e-3 * static_cast<double>(*free));
}

TEST(CpuEngine, MoreMemoryThanIsFreeIsRefusedBeforeItIsTaken) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  const auto free = FreeHostMemory();
  ASSERT_TRUE(free.ok());
  CpuEngineOptions options = SmallOptions();
  options.kv_memory = MemoryBudget::Bytes(2 * *free);
  const absl::Status too_large = CreateCpuEngine(*checkpoint, options).status();
  EXPECT_EQ(too_large.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(too_large.message()),
              HasSubstr("bytes are free once the weights are loaded"));

  options = SmallOptions();
  // What another pool has not taken yet is not free, although the system says so.
  const auto bytes = static_cast<size_t>(2 * *free);
  void* const pool =
      mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(pool, MAP_FAILED);
  options.allotted = std::make_shared<AllottedMemory>();
  auto entry = options.allotted->Add(pool, static_cast<int64_t>(bytes));
  const absl::Status full = CreateCpuEngine(*checkpoint, options).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("bytes needed, 0 free"));
  entry.reset();
  munmap(pool, bytes);
  EXPECT_TRUE(CreateCpuEngine(*checkpoint, options).ok());
}

TEST(CpuEngine, APoolCountsAsTakenWhileItsEngineLives) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  CpuEngineOptions options = SmallOptions();
  options.kv_memory = MemoryBudget::Bytes(256 << 20);
  options.allotted = std::make_shared<AllottedMemory>();
  auto engine = MakeEngine(*checkpoint, options);
  const int64_t pool = engine->shape().num_pages * engine->shape().page_bytes;
#ifndef PHOTON_ALLOCATOR_WRITES
  // The system may deal out what is around the first bytes with them.
  EXPECT_GT(options.allotted->UntakenBytes(), pool - (4 << 20));
#endif
  EXPECT_LE(options.allotted->UntakenBytes(), pool);
  engine.reset();
  EXPECT_EQ(options.allotted->UntakenBytes(), 0);
}

TEST(CpuEngine, TopLogprobsHoldTheChosenTokenFirstUnderGreedy) {
  const NamedConfig named = SmallConfigs()[0];
  const auto checkpoint = RandomCheckpoint(named.config);
  const auto engine = MakeEngine(*checkpoint);
  class TopSink final : public TokenSink {
   public:
    bool OnTokens(int, std::span<const SampledToken> tokens) override {
      for (const SampledToken& token : tokens) {
        ++count;
        EXPECT_EQ(token.top.size(), 4u);
        EXPECT_EQ(token.top[0].token, token.token);
        EXPECT_EQ(token.top[0].logprob, token.logprob);
        EXPECT_TRUE(std::is_sorted(token.top.begin(), token.top.end(),
                                   [](auto& a, auto& b) { return a.logprob > b.logprob; }));
      }
      return true;
    }
    int count = 0;
  } sink;
  Sequence sequence(engine->shape(), {}, 0, GenerationMode::kHierGen,
                    {.temperature = 0, .top_logprobs = 4});
  const Row row = sequence.NextRow(false);
  ASSERT_TRUE(engine->Step({}, std::span(&row, 1), sink).ok());
  EXPECT_EQ(sink.count, engine->shape().meta_tokens);
}

}  // namespace
}  // namespace photon
