// The CUDA engine in fp32 against the golden files: logits and greedy texts of every mode, computed
// by training/photon_model.py in float64.
#include <filesystem>
#include <string>
#include <vector>

#include "engine/cuda/cuda_engine.h"
#include "engine/model/safetensors.h"
#include "tests/engine/cpu/engine_fixtures.h"
#include "tests/engine/cuda/gpu_fixture.h"
#include "tests/engine/golden_files.h"

namespace photon {
namespace {

namespace fs = std::filesystem;

constexpr double kTolerance = 1e-4;

const std::vector<std::pair<std::string, GenerationMode>> kModes = {
    {"exact", GenerationMode::kExact},
    {"hiergen", GenerationMode::kHierGen},
    {"recgen", GenerationMode::kRecGen}};

std::vector<TokenId> Tokens(const TensorMap& tensors, const std::string& name) {
  const TensorView& tensor = tensors.find(name)->second;
  const auto* data = reinterpret_cast<const TokenId*>(tensor.data);
  return {data, data + tensor.num_elements()};
}

// The first `rows` rows of a tensor.
std::vector<double> Rows(const TensorMap& tensors, const std::string& name, size_t rows) {
  const TensorView& tensor = tensors.find(name)->second;
  const auto* data = reinterpret_cast<const float*>(tensor.data);
  return {data, data + rows * tensor.shape[1]};
}

class CudaGolden : public cuda::OnGpu, public testing::WithParamInterface<std::string> {};

void ExpectMatches(const fs::path& directory) {
  const auto checkpoint = Checkpoint::Load(directory);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  const auto file = SafetensorsFile::Open(directory / "golden.safetensors");
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  const TensorMap& tensors = (*file)->tensors();
  auto created = CreateCudaEngine(**checkpoint, {.compute = CudaEngineOptions::Compute::kF32,
                                                 .kv_memory = MemoryBudget::Bytes(4 << 20),
                                                 .page_tokens = 17,
                                                 .max_rows = 1,
                                                 .max_prefill_tokens = 512});
  ASSERT_TRUE(created.ok()) << created.status().ToString();
  Engine& engine = **created;

  const auto tokens = Tokens(tensors, "tokens");
  std::vector<float> logits;
  for (const auto& row : TeacherForcedLogits(engine, tokens)) {
    logits.insert(logits.end(), row.begin(), row.end());
  }
  EXPECT_LT(RelativeError(logits, Rows(tensors, "logits", tokens.size())), kTolerance);

  int texts = 0;
  for (const auto& [mode_name, mode] : kModes) {
    for (const std::string start : {"aligned", "unaligned"}) {
      const std::string prefix = mode_name + "." + start;
      if (!tensors.contains(prefix + ".prompt")) continue;
      ++texts;
      const auto prompt = Tokens(tensors, prefix + ".prompt");
      const auto output = Tokens(tensors, prefix + ".output");
      const size_t meta = engine.shape().meta_tokens, vocab = engine.shape().vocab_size;
      const size_t forced = prompt.size() % meta;
      const int steps = static_cast<int>((forced + output.size() + meta - 1) / meta);
      for (const bool want_logits : {false, true}) {  // recorded, and launch by launch
        const Generated generated =
            Generate(engine, prompt, steps, mode, {.temperature = 0}, want_logits);
        ASSERT_GE(generated.tokens.size(), output.size());
        const std::vector<TokenId> start_of_text(generated.tokens.begin(),
                                                 generated.tokens.begin() + output.size());
        EXPECT_EQ(start_of_text, output) << prefix;
        if (!want_logits) continue;
        const std::span<const float> of_output(generated.logits.data() + forced * vocab,
                                               output.size() * vocab);
        EXPECT_LT(RelativeError(of_output, Rows(tensors, prefix + ".logits", output.size())),
                  kTolerance)
            << prefix;
      }
    }
  }
  EXPECT_GE(texts, 2);
}

TEST_P(CudaGolden, LogitsAndGreedyTextsMatchInEveryMode) {
  ExpectMatches(fs::path(PHOTON_GOLDEN_DIR) / GetParam());
}

INSTANTIATE_TEST_SUITE_P(Configs, CudaGolden, testing::ValuesIn(GoldenNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace photon
