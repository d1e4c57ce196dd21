// The engine against logits and greedy texts computed by training/photon_model.py in float64.
// training/export_golden.py writes the files and says what is in them.
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/model/safetensors.h"
#include "gtest/gtest.h"
#include "tests/engine/cpu/engine_fixtures.h"
#include "tests/engine/golden_files.h"

namespace photon {
namespace {

namespace fs = std::filesystem;

std::vector<TokenId> Tokens(const TensorMap& tensors, const std::string& name) {
  const TensorView& tensor = tensors.find(name)->second;
  const auto* data = reinterpret_cast<const TokenId*>(tensor.data);
  return {data, data + tensor.num_elements()};
}

std::vector<double> Row(const TensorMap& tensors, const std::string& name, size_t row) {
  const TensorView& tensor = tensors.find(name)->second;
  const int64_t width = tensor.shape[1];
  const auto* data = reinterpret_cast<const float*>(tensor.data) + row * width;
  return {data, data + width};
}

const std::vector<std::pair<std::string, GenerationMode>> kModes = {
    {"exact", GenerationMode::kExact},
    {"hiergen", GenerationMode::kHierGen},
    {"recgen", GenerationMode::kRecGen}};

class Golden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string directory = std::string(PHOTON_GOLDEN_DIR) + "/" + GetParam();
    auto checkpoint = Checkpoint::Load(directory);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
    checkpoint_ = *std::move(checkpoint);
    auto file = SafetensorsFile::Open(directory + "/golden.safetensors");
    ASSERT_TRUE(file.ok()) << file.status().ToString();
    file_ = *std::move(file);
    engine_ = MakeEngine(*checkpoint_);
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<SafetensorsFile> file_;
  std::unique_ptr<Engine> engine_;
};

constexpr double kTolerance = 1e-4;

TEST_P(Golden, TeacherForcedLogitsMatch) {
  const auto tokens = Tokens(file_->tensors(), "tokens");
  const auto logits = TeacherForcedLogits(*engine_, tokens);
  ASSERT_EQ(logits.size(), tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_LT(RelativeError(logits[i], Row(file_->tensors(), "logits", i)), kTolerance) << i;
  }
}

TEST_P(Golden, GreedyTextsAndTheirLogitsMatchInEveryMode) {
  int texts = 0;
  for (const auto& [mode_name, mode] : kModes) {
    for (const std::string start : {"aligned", "unaligned"}) {
      const std::string prefix = mode_name + "." + start;
      if (!file_->tensors().contains(prefix + ".prompt")) continue;
      ++texts;
      const auto prompt = Tokens(file_->tensors(), prefix + ".prompt");
      const auto output = Tokens(file_->tensors(), prefix + ".output");
      const size_t meta = engine_->shape().meta_tokens;
      const size_t forced = prompt.size() % meta;
      const size_t steps = (forced + output.size() + meta - 1) / meta;
      const Generated generated =
          Generate(*engine_, prompt, static_cast<int>(steps), mode, {.temperature = 0}, true);
      ASSERT_GE(generated.tokens.size(), output.size());
      const size_t vocab = engine_->shape().vocab_size;
      std::vector<double> expected;
      for (size_t i = 0; i < output.size(); ++i) {
        ASSERT_EQ(generated.tokens[i], output[i]) << prefix << ", token " << i;
        const std::vector<double> row = Row(file_->tensors(), prefix + ".logits", i);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      // Over the whole text: predictions that feed on predictions amplify rounding as they go on.
      const std::span<const float> logits(generated.logits.data() + forced * vocab,
                                          expected.size());
      EXPECT_LT(RelativeError(logits, expected), kTolerance) << prefix;
    }
  }
  EXPECT_GE(texts, 2);
}

INSTANTIATE_TEST_SUITE_P(Configs, Golden, testing::ValuesIn(GoldenNames()),
                         [](const auto& info) { return info.param; });

TEST(GoldenFiles, CoverAtLeastEightConfigs) {
  EXPECT_GE(GoldenNames().size(), 8u);
}

}  // namespace
}  // namespace photon
