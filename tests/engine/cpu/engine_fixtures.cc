#include "tests/engine/cpu/engine_fixtures.h"

#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <random>

#include "engine/model/random_checkpoint.h"
#include "gtest/gtest.h"

namespace photon {
namespace {

StackConfig Stack(int hidden, int layers, int heads, int kv_heads, int head_dim, int intermediate) {
  return {.hidden_size = hidden,
          .num_layers = layers,
          .num_heads = heads,
          .num_kv_heads = kv_heads,
          .head_dim = head_dim,
          .intermediate_size = intermediate};
}

// Collects a step's tokens per row.
class Collector final : public TokenSink {
 public:
  explicit Collector(size_t num_rows) : tokens(num_rows), logprobs(num_rows) {}

  bool OnTokens(int row, std::span<const SampledToken> sampled) override {
    for (const SampledToken& token : sampled) {
      tokens[row].push_back(token.token);
      logprobs[row].push_back(token.logprob);
    }
    return true;
  }

  std::vector<std::vector<TokenId>> tokens;
  std::vector<std::vector<float>> logprobs;
};

ModelConfig TwoLevelBlock() {
  ModelConfig config{.vocab_size = 67, .embedding_dim = 24, .max_context = 256};
  config.levels = {
      {.chunk_size = 4,
       .converter_width = 2,
       .encoder_span = EncoderSpan::kBlock,
       .encoder = Stack(32, 2, 4, 4, 8, 40),
       .decoder = Stack(24, 2, 3, 3, 8, 36)},
      {.chunk_size = 4,
       .converter_width = 2,
       .encoder = Stack(48, 2, 4, 2, 12, 52),
       .decoder = Stack(32, 1, 2, 2, 16, 44)},
  };
  return config;
}

ModelConfig TwoLevelGlobal() {
  ModelConfig config{.vocab_size = 71,
                     .embedding_dim = 20,
                     .encoder_embedding_dim = 9,
                     .scale_embeddings = true,
                     .final_norm = true,
                     .max_context = 200};
  config.levels = {
      {.chunk_size = 3,
       .converter_width = 1,
       .chunker = {.type = ChunkerConfig::Type::kConcat},
       .converter = {.kernel = 3, .in_norm = true, .out_norm = true, .bias = true},
       .encoder_span = EncoderSpan::kGlobal,
       .encoder = Stack(27, 1, 3, 1, 10, 33),
       .decoder = Stack(20, 2, 2, 1, 8, 31)},
      {.chunk_size = 2,
       .converter_width = 3,
       .chunker = {.in_norm = ChunkerConfig::InNorm::kConcat, .out_norm = true, .bias = true},
       .converter = {.kernel = 3, .bias = true},
       .encoder = Stack(40, 2, 4, 4, 8, 50),
       .decoder = Stack(27, 1, 3, 3, 6, 29)},
  };
  for (LevelConfig& level : config.levels) {
    level.encoder.qk_norm = true;
    level.encoder.rope_partial = 0.5f;
    level.encoder.rope_theta = 500.0f;
    level.decoder.norm_eps = 1e-3f;
  }
  config.levels[0].encoder.rope_partial = 0.4f;  // 4 of 10
  return config;
}

ModelConfig ThreeLevels() {
  ModelConfig config{
      .vocab_size = 64, .embedding_dim = 16, .tie_word_embeddings = true, .max_context = 128};
  config.levels = {
      {.chunk_size = 2,
       .converter_width = 2,
       .chunker = {.in_norm = ChunkerConfig::InNorm::kUnit},
       .converter = {.in_norm = true},
       .encoder_span = EncoderSpan::kBlock,
       .encoder = Stack(24, 1, 2, 2, 12, 30),
       .decoder = Stack(16, 1, 2, 1, 8, 24)},
      {.chunk_size = 3,
       .converter_width = 3,
       .chunker = {.bias = true},
       .converter = {.out_norm = true},
       .encoder_span = EncoderSpan::kGlobal,
       .encoder = Stack(32, 1, 4, 2, 8, 40),
       .decoder = Stack(24, 1, 3, 3, 8, 30)},
      {.chunk_size = 2,
       .converter_width = 1,
       .converter = {.bias = true},
       .encoder = Stack(40, 1, 5, 5, 8, 48),
       .decoder = Stack(32, 2, 4, 4, 8, 40)},
  };
  config.levels[1].decoder.qk_norm = true;
  return config;
}

ModelConfig OneLevel() {
  ModelConfig config{.vocab_size = 97, .embedding_dim = 17, .final_norm = true, .max_context = 96};
  config.levels = {{.chunk_size = 5,
                    .converter_width = 2,
                    .chunker = {.out_norm = true},
                    .encoder = Stack(33, 2, 3, 3, 12, 41),
                    .decoder = Stack(17, 2, 2, 2, 8, 25)}};
  return config;
}

}  // namespace

std::vector<NamedConfig> SmallConfigs() {
  return {{"two levels, block span", TwoLevelBlock()},
          {"two levels, global span", TwoLevelGlobal()},
          {"three levels", ThreeLevels()},
          {"one level", OneLevel()}};
}

std::unique_ptr<Checkpoint> RandomCheckpoint(const ModelConfig& config, uint64_t seed) {
  std::string directory = testing::TempDir() + "/photon_checkpoint_XXXXXX";
  EXPECT_NE(mkdtemp(directory.data()), nullptr);
  const absl::Status status =
      WriteRandomCheckpoint(config, {.dtype = DType::kF32, .seed = seed}, directory);
  EXPECT_TRUE(status.ok()) << status.ToString();
  auto checkpoint = Checkpoint::Load(directory);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  std::filesystem::remove_all(directory);  // the mapping keeps the bytes
  return *std::move(checkpoint);
}

CpuEngineOptions SmallOptions() {
  return {.compute = CpuEngineOptions::Compute::kF32,
          .threads = 1,
          .kv_memory = MemoryBudget::Bytes(4 << 20),
          .page_tokens = 17,  // two or three meta-contexts, once rounded up
          .max_rows = 16,
          .max_prefill_tokens = 512};
}

std::unique_ptr<Engine> MakeEngine(const Checkpoint& checkpoint, const CpuEngineOptions& options) {
  auto engine = CreateCpuEngine(checkpoint, options);
  EXPECT_TRUE(engine.ok()) << engine.status().ToString();
  return *std::move(engine);
}

std::vector<TokenId> RandomTokens(int count, int vocab_size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random() % vocab_size);
  return tokens;
}

Sequence::Sequence(const EngineShape& shape, std::vector<TokenId> prompt, int first_page,
                   GenerationMode mode, Sampling sampling)
    : shape_(shape), tokens_(std::move(prompt)), mode_(mode), sampling_(sampling) {
  const int pages = (shape.max_context + shape.meta_tokens) / shape.page_tokens + 1;
  for (int i = 0; i < pages; ++i) pages_.push_back(PageId{first_page + i});
}

Row Sequence::NextRow(bool want_logits) {
  if (want_logits) step_logits_.assign(int64_t{shape_.meta_tokens} * shape_.vocab_size, NAN);
  return {.cached_tokens = cached_tokens_,
          .input = std::span(tokens_).subspan(cached_tokens_),
          .pages = pages_,
          .mode = mode_,
          .sampling = sampling_,
          .logits = want_logits ? std::span(step_logits_) : std::span<float>()};
}

Row Sequence::PrefillRow(int meta_contexts) {
  return {.cached_tokens = cached_tokens_,
          .input = std::span(tokens_).subspan(cached_tokens_, meta_contexts * shape_.meta_tokens),
          .pages = pages_,
          .decode = false};
}

void Sequence::Decoded(std::span<const TokenId> tokens, std::span<const float> logprobs) {
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  EXPECT_EQ(tokens_.size() % shape_.meta_tokens, 0u);
  cached_tokens_ = static_cast<int>(tokens_.size());
  generated_.tokens.insert(generated_.tokens.end(), tokens.begin(), tokens.end());
  generated_.logprobs.insert(generated_.logprobs.end(), logprobs.begin(), logprobs.end());
  generated_.logits.insert(generated_.logits.end(), step_logits_.begin(), step_logits_.end());
}

void RunSteps(Engine& engine, std::span<Sequence*> sequences, int num_steps, bool want_logits) {
  for (int step = 0; step < num_steps; ++step) {
    std::vector<Row> rows;
    for (Sequence* sequence : sequences) rows.push_back(sequence->NextRow(want_logits));
    Collector collector(rows.size());
    const absl::Status status = engine.Step({}, rows, collector);
    ASSERT_TRUE(status.ok()) << status.ToString();
    for (size_t i = 0; i < sequences.size(); ++i) {
      sequences[i]->Decoded(collector.tokens[i], collector.logprobs[i]);
    }
  }
}

Generated Generate(Engine& engine, std::vector<TokenId> prompt, int num_steps, GenerationMode mode,
                   Sampling sampling, bool want_logits) {
  Sequence sequence(engine.shape(), std::move(prompt), 0, mode, sampling);
  Sequence* sequences[] = {&sequence};
  RunSteps(engine, sequences, num_steps, want_logits);
  return sequence.generated();
}

std::vector<std::vector<float>> TeacherForcedLogits(Engine& engine,
                                                    std::span<const TokenId> tokens) {
  const int meta = engine.shape().meta_tokens, vocab = engine.shape().vocab_size;
  std::vector<std::vector<float>> logits;
  for (size_t begin = 0; begin < tokens.size(); begin += meta) {
    // All but the last token of the meta-context are forced; the last one's logits come before it.
    const size_t known = std::min(begin + meta - 1, tokens.size());
    const Generated step =
        Generate(engine, {tokens.begin(), tokens.begin() + static_cast<int64_t>(known)}, 1,
                 GenerationMode::kExact, {.temperature = 0}, true);
    for (size_t slot = 0; slot < static_cast<size_t>(meta) && begin + slot < tokens.size();
         ++slot) {
      const auto row = step.logits.begin() + static_cast<int64_t>(slot) * vocab;
      logits.emplace_back(row, row + vocab);
    }
  }
  return logits;
}

double RelativeError(std::span<const float> a, std::span<const double> b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace photon
