// The CUDA engine against the reference forward pass and the CPU engine.
#include "engine/cuda/cuda_engine.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "tests/engine/cpu/engine_fixtures.h"
#include "tests/engine/cpu/reference_model.h"
#include "tests/engine/cuda/gpu_fixture.h"

namespace photon {
namespace {

using ::testing::HasSubstr;
using Compute = CudaEngineOptions::Compute;

// fp32 rounding through a few dozen layers' worth of sums, in another order than the reference's.
constexpr double kFloatTolerance = 2e-5;
// bf16 rounds with a relative error of up to 2^-9. Along a path through three encoders and three
// decoders it happens about 90 times (norms, qkv, attention, gate and up, their product, and keys
// and values): 2^-9 * sqrt(90) is 1.9 %, and weights are rounded as well.
constexpr double kBFloat16Tolerance = 0.04;

constexpr Sampling kGreedy{.temperature = 0};
constexpr int kMaxRows = cuda::kEveryNth == 1 ? 16 : 5;

class CudaEngine : public cuda::OnGpu {};

CudaEngineOptions SmallCudaOptions() {
  return {.compute = Compute::kF32,
          .kv_memory = MemoryBudget::Bytes(4 << 20),
          .page_tokens = 17,  // two or three meta-contexts, once rounded up
          .max_rows = kMaxRows,
          .max_prefill_tokens = 512};
}

std::unique_ptr<Engine> MakeCudaEngine(const Checkpoint& checkpoint,
                                       const CudaEngineOptions& options = SmallCudaOptions()) {
  auto engine = CreateCudaEngine(checkpoint, options);
  EXPECT_TRUE(engine.ok()) << engine.status().ToString();
  return *std::move(engine);
}

// Heads, widths and a vocabulary as the paper has them, but few; block span and a tied head.
NamedConfig PaperHeads(int head_dim) {
  const auto stack = [&](int layers) {
    return StackConfig{.hidden_size = 4 * head_dim,
                       .num_layers = layers,
                       .num_heads = 4,
                       .num_kv_heads = 4,
                       .head_dim = head_dim,
                       .intermediate_size = 512};
  };
  ModelConfig config{.vocab_size = 1003,
                     .embedding_dim = 4 * head_dim,
                     .tie_word_embeddings = true,
                     .max_context = 512};
  config.levels = {{.chunk_size = 4,
                    .converter_width = 2,
                    .converter = {.bias = true},
                    .encoder_span = EncoderSpan::kBlock,
                    .encoder = stack(2),
                    .decoder = stack(2)},
                   {.chunk_size = 4,
                    .converter_width = 2,
                    .converter = {.bias = true},
                    .encoder = stack(2),
                    .decoder = stack(1)}};
  return {"heads of " + std::to_string(head_dim), config};
}

std::vector<NamedConfig> AllConfigs() {
  std::vector<NamedConfig> configs = SmallConfigs();
  configs.push_back(PaperHeads(56));
  for (const int head_dim : {52, 60, 128}) {
    if (cuda::kEveryNth == 1) configs.push_back(PaperHeads(head_dim));
  }
  return configs;
}

// A test of its own for each config.
class CudaEngineOfEveryShape : public cuda::OnGpu,
                               public testing::WithParamInterface<NamedConfig> {};
INSTANTIATE_TEST_SUITE_P(Configs, CudaEngineOfEveryShape, testing::ValuesIn(AllConfigs()),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::erase_if(name, [](char c) { return !std::isalnum(c); });
                           return name;
                         });

void ExpectLogitsMatchTheReference(const NamedConfig& named, const CudaEngineOptions& options,
                                   double tolerance) {
  const auto checkpoint = RandomCheckpoint(named.config);
  const auto engine = MakeCudaEngine(*checkpoint, options);
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

TEST_P(CudaEngineOfEveryShape, MatchesTheReferenceInFp32) {
  ExpectLogitsMatchTheReference(GetParam(), SmallCudaOptions(), kFloatTolerance);
}

TEST_P(CudaEngineOfEveryShape, IsNearTheReferenceInBf16) {
  CudaEngineOptions options = SmallCudaOptions();
  options.compute = Compute::kBF16;
  ExpectLogitsMatchTheReference(GetParam(), options, kBFloat16Tolerance);
}

// Sequences of every mode, with prompts of every kind and sampling settings of their own.
std::vector<std::unique_ptr<Sequence>> VariedSequences(const EngineShape& shape, int count) {
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (int i = 0; i < count; ++i) {
    const Sampling sampling{.temperature = i % 3 * 0.7f,
                            .top_k = i % 4 * 5,
                            .top_p = i % 2 == 0 ? 1.0f : 0.9f,
                            .min_p = i % 5 == 4 ? 0.05f : 0.0f,
                            .seed = static_cast<uint64_t>(i)};
    sequences.push_back(
        std::make_unique<Sequence>(shape, RandomTokens(i * 5 % 23, shape.vocab_size, i), 30 * i,
                                   shape.modes[i % shape.modes.size()], sampling));
  }
  return sequences;
}

std::vector<Generated> RunVaried(Engine& engine, int count, int steps, bool want_logits) {
  const auto owned = VariedSequences(engine.shape(), count);
  std::vector<Sequence*> sequences;
  for (const auto& sequence : owned) sequences.push_back(sequence.get());
  RunSteps(engine, sequences, steps, want_logits);
  std::vector<Generated> generated;
  for (const auto& sequence : owned) generated.push_back(sequence->generated());
  return generated;
}

void ExpectSameTokens(const std::vector<Generated>& actual, const std::vector<Generated>& expected,
                      const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i].tokens, expected[i].tokens) << what << ", row " << i;
    for (size_t t = 0; t < actual[i].logprobs.size(); ++t) {
      ASSERT_NEAR(actual[i].logprobs[t], expected[i].logprobs[t], 1e-3) << what << ", row " << i;
    }
  }
}

TEST_P(CudaEngineOfEveryShape, GeneratesInEveryModeWhatTheCpuGenerates) {
  const auto checkpoint = RandomCheckpoint(GetParam().config);
  CpuEngineOptions cpu_options = SmallOptions();
  cpu_options.kv_memory = MemoryBudget::Bytes(int64_t{64} << 20);
  const auto cpu = MakeEngine(*checkpoint, cpu_options);
  CudaEngineOptions options = SmallCudaOptions();
  options.kv_memory = cpu_options.kv_memory;
  const auto recorded = MakeCudaEngine(*checkpoint, options);
  options.use_graphs = false;
  const auto launched = MakeCudaEngine(*checkpoint, options);
  for (const int rows : {5, 1, 2, 3, 13, 16}) {
    if (!Takes() || rows > kMaxRows) continue;
    const auto expected = RunVaried(*cpu, rows, 3, false);
    const std::string what = std::to_string(rows) + " rows";
    ExpectSameTokens(RunVaried(*recorded, rows, 3, false), expected, what + ", graphs");
    ExpectSameTokens(RunVaried(*launched, rows, 3, false), expected, what + ", launches");
    ExpectSameTokens(RunVaried(*launched, rows, 3, true), expected, what + ", with logits");
  }
}

TEST_F(CudaEngine, RepeatedRunsGiveTheSameBits) {
  const auto checkpoint = RandomCheckpoint(PaperHeads(52).config);
  CudaEngineOptions options = SmallCudaOptions();
  options.compute = Compute::kBF16;
  options.kv_memory = MemoryBudget::Bytes(int64_t{64} << 20);
  const auto engine = MakeCudaEngine(*checkpoint, options);
  const auto first = RunVaried(*engine, kMaxRows - 3, 3, true);
  for (int repeat = 0; repeat < 5 / cuda::kEveryNth; ++repeat) {
    const auto again = RunVaried(*engine, kMaxRows - 3, 3, true);
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_EQ(again[i].tokens, first[i].tokens);
      EXPECT_EQ(again[i].logprobs, first[i].logprobs);
    }
  }
}

std::vector<double> ToDoubles(std::span<const float> values) {
  return {values.begin(), values.end()};
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

TEST_P(CudaEngineOfEveryShape, ReachesTheSameStateByAnySplitOfThePrefill) {
  const auto checkpoint = RandomCheckpoint(GetParam().config);
  const auto engine = MakeCudaEngine(*checkpoint);
  const EngineShape& shape = engine->shape();
  const int metas = 7;
  const auto prompt = RandomTokens(metas * shape.meta_tokens, shape.vocab_size, 5);
  const Generated whole = Generate(*engine, prompt, 1, GenerationMode::kExact, kGreedy, true);
  for (const int piece : {2, 1, 3, 6}) {
    if (!Takes()) continue;
    Sequence sequence(shape, prompt, 20);
    for (int left = metas; left > 0; left -= piece) {
      const Row row = sequence.PrefillRow(std::min(piece, left));
      LimitedSink sink(0);
      ASSERT_TRUE(engine->Step({}, std::span(&row, 1), sink).ok());
      sequence.Prefilled(row);
    }
    Sequence* sequences[] = {&sequence};
    RunSteps(*engine, sequences, 1, true);
    EXPECT_LT(RelativeError(sequence.generated().logits, ToDoubles(whole.logits)), kFloatTolerance)
        << "pieces of " << piece;
  }
}

TEST_F(CudaEngine, ARowThatEndsReportsNoMoreAndKeepsItsPages) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  const auto engine = MakeCudaEngine(*checkpoint);
  for (const GenerationMode mode : engine->shape().modes) {
    const auto prompt = RandomTokens(16, engine->shape().vocab_size, 4);
    const Generated alone = Generate(*engine, prompt, 1, mode, kGreedy, true);
    Sequence ending(engine->shape(), prompt, 0, mode), going(engine->shape(), prompt, 20, mode);
    const Row rows[] = {ending.NextRow(false), going.NextRow(true)};
    LimitedSink sink(3);
    ASSERT_TRUE(engine->Step({}, rows, sink).ok());
    EXPECT_GE(sink.seen(), 3u);
    EXPECT_LT(RelativeError(rows[1].logits, ToDoubles(alone.logits)), kFloatTolerance);
    // The page still holds the top state of the prompt: the same meta-context decodes again.
    std::vector<float> logits(alone.logits.size());
    const Row again{.cached_tokens = 16,
                    .pages = rows[0].pages,
                    .mode = mode,
                    .sampling = kGreedy,
                    .logits = logits};
    LimitedSink all(1000);
    ASSERT_TRUE(engine->Step({}, std::span(&again, 1), all).ok());
    EXPECT_LT(RelativeError(logits, ToDoubles(alone.logits)), kFloatTolerance);
  }
}

TEST_F(CudaEngine, ACopiedPageCarriesTheSequenceOn) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  const auto engine = MakeCudaEngine(*checkpoint);
  const EngineShape& shape = engine->shape();
  ASSERT_EQ(shape.page_tokens, 2 * shape.meta_tokens);
  const auto prompt = RandomTokens(3 * shape.meta_tokens, shape.vocab_size, 6);
  const Generated expected = Generate(*engine, prompt, 1, GenerationMode::kExact, kGreedy, true);

  // Pages 0 and 1 hold the prompt, page 1 half full. The fork reads page 0 and writes its own copy.
  Sequence original(shape, prompt, 0);
  const Row prefill = original.PrefillRow(3);
  LimitedSink sink(1000);
  ASSERT_TRUE(engine->Step({}, std::span(&prefill, 1), sink).ok());
  const std::vector<PageId> pages = {PageId{0}, PageId{50}};
  const PageCopy copy{.from = PageId{1}, .to = PageId{50}};
  std::vector<float> logits(expected.logits.size());
  const Row fork{.cached_tokens = 3 * shape.meta_tokens,
                 .pages = pages,
                 .sampling = kGreedy,
                 .logits = logits};
  ASSERT_TRUE(engine->Step(std::span(&copy, 1), std::span(&fork, 1), sink).ok());
  EXPECT_LT(RelativeError(logits, ToDoubles(expected.logits)), kFloatTolerance);
}

TEST_F(CudaEngine, AlternativesComeMostProbableFirst) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  const auto engine = MakeCudaEngine(*checkpoint);
  struct CheckTop final : TokenSink {
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

TEST_F(CudaEngine, RowsThatBreakTheShapeAreRefused) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  const auto engine = MakeCudaEngine(*checkpoint);
  const Row row{.cached_tokens = 8};
  LimitedSink sink(0);
  const absl::Status status = engine->Step({}, std::span(&row, 1), sink);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rows[0].cached_tokens"));
}

TEST_F(CudaEngine, TooLittleMemorySaysWhatWasNeeded) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  CudaEngineOptions options = SmallCudaOptions();
  options.kv_memory = MemoryBudget::Bytes(int64_t{1} << 42);
  absl::Status status = CreateCudaEngine(*checkpoint, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("GiB needed"));
  options.kv_memory = MemoryBudget::Bytes(16);
  status = CreateCudaEngine(*checkpoint, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("latent pool: a page of"));
}

TEST_F(CudaEngine, ADeviceThatIsNotThereIsRefused) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  CudaEngineOptions options = SmallCudaOptions();
  options.device = 99;
  const absl::Status status = CreateCudaEngine(*checkpoint, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no device 99"));
}

TEST(CudaEngineOptions, ThatAreOutOfRangeAreRefusedBeforeAnyDeviceIsAsked) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  CudaEngineOptions options = SmallCudaOptions();
  options.max_rows = 0;
  absl::Status status = CreateCudaEngine(*checkpoint, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("max_rows: must be at least 1, got 0"));
  options = SmallCudaOptions();
  options.max_prefill_tokens = 15;
  status = CreateCudaEngine(*checkpoint, options).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("max_prefill_tokens"));
}

}  // namespace
}  // namespace photon
