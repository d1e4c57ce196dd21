#include "engine/model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/random_checkpoint.h"
#include "tests/engine/model/model_fixtures.h"

namespace photon {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;

void WriteSmall(const TempDir& dir, const RandomCheckpointOptions& options = {}) {
  const absl::Status status = WriteRandomCheckpoint(SmallConfig(), options, dir.path());
  ASSERT_TRUE(status.ok()) << status;
}

// Writes a checkpoint of zeros whose tensors are those of SmallConfig after `edit`.
template <typename Edit>
void WriteEdited(const TempDir& dir, Edit edit) {
  std::vector<TensorHeader> headers;
  for (const TensorSpec& spec : TensorSpecs(SmallConfig())) {
    headers.push_back({spec.name, DType::kF32, spec.shape});
  }
  edit(headers);
  WriteFile(dir.File("config.json"), ModelConfigToJson(SmallConfig()));
  auto writer = SafetensorsWriter::Create(dir.File("model.safetensors"), headers);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const TensorHeader& header : headers) {
    ASSERT_TRUE((*writer)->Append(std::vector<std::byte>(header.num_bytes())).ok());
  }
  ASSERT_TRUE((*writer)->Finish().ok());
}

std::string Refusal(const TempDir& dir) {
  const auto checkpoint = Checkpoint::Load(dir.path());
  EXPECT_FALSE(checkpoint.ok());
  return std::string(checkpoint.status().message());
}

TensorHeader& Find(std::vector<TensorHeader>& headers, const std::string& name) {
  for (TensorHeader& header : headers) {
    if (header.name == name) return header;
  }
  ADD_FAILURE() << name;
  return headers.front();
}

TEST(Checkpoint, EveryTensorOfTheConfigIsBound) {
  const TempDir dir;
  WriteSmall(dir);
  const auto checkpoint = Checkpoint::Load(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ModelWeights weights = (*checkpoint)->weights();
  int64_t parameters = 0;
  ForEachTensor((*checkpoint)->config(), weights, [&](TensorSpec spec, TensorView& view) {
    ASSERT_FALSE(view.empty()) << spec.name;
    EXPECT_EQ(view.shape, spec.shape) << spec.name;
    EXPECT_EQ(view.dtype, DType::kBF16) << spec.name;
    parameters += view.num_elements();
  });
  EXPECT_EQ(parameters, NumParameters(SmallConfig()));
  EXPECT_GT((*checkpoint)->file_bytes(), 2 * parameters);
  EXPECT_EQ((*checkpoint)->tokenizer_path(), dir.File("tokenizer.model"));
}

TEST(Checkpoint, DTypesMayDiffer) {
  const TempDir dir;
  WriteEdited(dir, [](std::vector<TensorHeader>& headers) {
    headers.back().dtype = DType::kF16;  // lm_head
  });
  const auto checkpoint = Checkpoint::Load(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->weights().lm_head.dtype, DType::kF16);
  EXPECT_EQ((*checkpoint)->weights().embedding.dtype, DType::kF32);
}

TEST(Checkpoint, WrongShapesAreNamed) {
  const TempDir dir;
  WriteEdited(dir, [](std::vector<TensorHeader>& headers) {
    Find(headers, "levels.1.encoder.layers.1.wq").shape = {8, 13};
    Find(headers, "start_latent").shape = {14, 1};
  });
  EXPECT_THAT(Refusal(dir),
              AllOf(HasSubstr("levels.1.encoder.layers.1.wq: expected [8, 14], file has [8, 13]"),
                    HasSubstr("; start_latent: expected [14], file has [14, 1]")));
}

TEST(Checkpoint, MissingAndExtraTensorsAreNamed) {
  const TempDir dir;
  WriteEdited(dir, [](std::vector<TensorHeader>& headers) {
    Find(headers, "levels.0.encoder.norm").name = "levels.0.encoder.nrom";
  });
  EXPECT_THAT(
      Refusal(dir),
      AllOf(HasSubstr("levels.0.encoder.norm: missing, expected [10]"),
            HasSubstr("\"levels.0.encoder.nrom\": the config has no such tensor; file has [10]")));
}

TEST(Checkpoint, IntegersAreNoWeights) {
  const TempDir dir;
  WriteEdited(dir, [](std::vector<TensorHeader>& headers) {
    Find(headers, "final_norm").dtype = DType::kI32;
  });
  EXPECT_THAT(Refusal(dir), HasSubstr("final_norm: expected F32, BF16 or F16, file has I32"));
}

TEST(Checkpoint, NonFiniteValuesAreNamed) {
  const TempDir dir;
  WriteSmall(dir, {.dtype = DType::kF32});
  // lm_head, [32, 8], is the last tensor: its element 248 lies 8 elements before the file's end.
  std::string bytes = ReadFile(dir.File("model.safetensors"));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data() + bytes.size() - 8 * sizeof(float), &nan, sizeof(float));
  WriteFile(dir.File("model.safetensors"), bytes);
  EXPECT_THAT(Refusal(dir),
              HasSubstr("lm_head: element 248 of [32, 8] is infinite or not a number"));
}

TEST(Checkpoint, EveryTruncatedFileIsRefused) {
  const TempDir dir;
  WriteSmall(dir);
  const std::string bytes = ReadFile(dir.File("model.safetensors"));
  for (size_t size = 0; size < bytes.size(); size += 97) {
    WriteFile(dir.File("model.safetensors"), bytes.substr(0, size));
    EXPECT_FALSE(Checkpoint::Load(dir.path()).ok()) << size;
  }
}

TEST(Checkpoint, MissingFilesAreNotFound) {
  const TempDir dir;
  EXPECT_EQ(Checkpoint::Load(dir.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Refusal(dir), HasSubstr("config.json"));
  WriteFile(dir.File("config.json"), ModelConfigToJson(SmallConfig()));
  EXPECT_EQ(Checkpoint::Load(dir.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Refusal(dir), HasSubstr("model.safetensors"));
}

TEST(Checkpoint, ABadConfigIsRefusedWithItsPath) {
  const TempDir dir;
  WriteSmall(dir);
  ModelConfig config = SmallConfig();
  config.vocab_size = 0;
  WriteFile(dir.File("config.json"), ModelConfigToJson(config));
  EXPECT_THAT(Refusal(dir), HasSubstr(dir.File("config.json") + ": vocab_size: must be in"));
  WriteFile(dir.File("config.json"), std::string(2 << 20, ' '));
  EXPECT_THAT(Refusal(dir), HasSubstr("more than 1048576"));
}

// Element `index` of `count` ones of `dtype` becomes `bits`.
template <typename Bits>
int64_t FindAmongOnes(DType dtype, Bits one, int64_t count, int64_t index, Bits bits) {
  std::vector<Bits> values(count, one);
  if (index >= 0) values[index] = bits;
  return FindNonFinite({.dtype = dtype,
                        .shape = {count},
                        .data = reinterpret_cast<const std::byte*>(values.data())});
}

TEST(FindNonFinite, FindsTheFirstInEveryDTypeAndPlace) {
  for (const int64_t count : {1, 7, 16384, 16385, 50000}) {
    for (const int64_t index : {int64_t{0}, count / 2, count - 1}) {
      for (const uint32_t bits : {0x7f800000u, 0xff800000u, 0x7f800001u, 0xffffffffu}) {
        EXPECT_EQ(FindAmongOnes<uint32_t>(DType::kF32, 0x3f800000, count, index, bits), index);
      }
      for (const uint16_t bits : {0x7f80, 0xff80, 0x7f81, 0xffff}) {
        EXPECT_EQ(FindAmongOnes<uint16_t>(DType::kBF16, 0x3f80, count, index, bits), index);
      }
      for (const uint16_t bits : {0x7c00, 0xfc00, 0x7c01, 0xffff}) {
        EXPECT_EQ(FindAmongOnes<uint16_t>(DType::kF16, 0x3c00, count, index, bits), index);
      }
      // The largest finite values, of either sign.
      EXPECT_EQ(FindAmongOnes<uint32_t>(DType::kF32, 0x3f800000, count, index, 0x7f7fffff), -1);
      EXPECT_EQ(FindAmongOnes<uint16_t>(DType::kBF16, 0x3f80, count, index, 0xff7f), -1);
      EXPECT_EQ(FindAmongOnes<uint16_t>(DType::kF16, 0x3c00, count, index, 0x7bff), -1);
    }
  }
}

TEST(RandomCheckpoint, TheSeedDecidesTheBytesWhateverTheShards) {
  const TempDir one, same, other, sharded;
  WriteSmall(one, {.seed = 1});
  WriteSmall(same, {.seed = 1});
  WriteSmall(other, {.seed = 2});
  WriteSmall(sharded, {.seed = 1, .shard_bytes = 2000});
  EXPECT_EQ(ReadFile(one.File("model.safetensors")), ReadFile(same.File("model.safetensors")));
  EXPECT_NE(ReadFile(one.File("model.safetensors")), ReadFile(other.File("model.safetensors")));

  EXPECT_TRUE(std::filesystem::exists(sharded.File("model.safetensors.index.json")));
  const auto whole = Checkpoint::Load(one.path());
  const auto parts = Checkpoint::Load(sharded.path());
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_TRUE(parts.ok()) << parts.status();
  ModelWeights a = (*whole)->weights();
  ModelWeights b = (*parts)->weights();
  std::vector<std::vector<float>> expected;
  ForEachTensor(SmallConfig(), a,
                [&](TensorSpec, TensorView& view) { expected.push_back(ToFloat(view)); });
  size_t i = 0;
  ForEachTensor(SmallConfig(), b, [&](TensorSpec spec, TensorView& view) {
    EXPECT_EQ(ToFloat(view), expected[i++]) << spec.name;
  });
}

TEST(RandomCheckpoint, DTypesRoundTheSameValues) {
  const TempDir f32, bf16, f16;
  WriteSmall(f32, {.dtype = DType::kF32});
  WriteSmall(bf16, {.dtype = DType::kBF16});
  WriteSmall(f16, {.dtype = DType::kF16});
  const auto head = [](const TempDir& dir) {
    const auto checkpoint = Checkpoint::Load(dir.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return ToFloat((*checkpoint)->weights().lm_head);
  };
  const std::vector<float> exact = head(f32), coarse = head(bf16), fine = head(f16);
  for (size_t i = 0; i < exact.size(); ++i) {
    EXPECT_NEAR(coarse[i], exact[i], std::abs(exact[i]) / 256);
    EXPECT_NEAR(fine[i], exact[i], std::abs(exact[i]) / 2048 + 1e-7);
  }
}

TEST(RandomCheckpoint, NoParameterIsTrivialAndScalesAreSane) {
  const TempDir dir;
  WriteSmall(dir, {.dtype = DType::kF32});
  const auto checkpoint = Checkpoint::Load(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelWeights& weights = (*checkpoint)->weights();
  const auto moments = [](const TensorView& view) {
    double sum = 0, squares = 0;
    const std::vector<float> values = ToFloat(view);
    for (float value : values) {
      sum += value;
      squares += double{value} * value;
    }
    const double mean = sum / values.size();
    return std::pair(mean, std::sqrt(squares / values.size() - mean * mean));
  };
  const auto [mean, deviation] = moments(weights.lm_head);  // 256 values, fan in 8
  EXPECT_NEAR(mean, 0.0, 0.1);
  EXPECT_NEAR(deviation, 1 / std::sqrt(8.0), 0.06);
  EXPECT_NEAR(moments(weights.embedding).second, 1.0, 0.15);
  EXPECT_THAT(ToFloat(weights.final_norm), Each(AllOf(::testing::Gt(0.6f), ::testing::Lt(1.4f))));
  EXPECT_THAT(ToFloat(weights.final_norm), Each(Not(1.0f)));
  EXPECT_THAT(ToFloat(weights.levels[0].chunker.bias), Each(Not(0.0f)));
}

TEST(RandomCheckpoint, ReportsProgressAndCopiesTheTokenizer) {
  const TempDir dir, source;
  WriteFile(source.File("any.model"), "pieces");
  int64_t last = 0, total = 0;
  WriteSmall(dir, {.tokenizer = source.File("any.model"),
                   .progress = [&](int64_t written, int64_t all) { last = written, total = all; }});
  EXPECT_EQ(total, 2 * NumParameters(SmallConfig()));
  EXPECT_EQ(last, total);
  EXPECT_EQ(ReadFile(dir.File("tokenizer.model")), "pieces");
}

TEST(RandomCheckpoint, RefusesToOverwriteAndBadConfigs) {
  const TempDir dir;
  WriteSmall(dir);
  EXPECT_EQ(WriteRandomCheckpoint(SmallConfig(), {}, dir.path()).code(),
            absl::StatusCode::kAlreadyExists);
  ModelConfig config = SmallConfig();
  config.levels.clear();
  EXPECT_EQ(WriteRandomCheckpoint(config, {}, dir.File("sub")).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteRandomCheckpoint(SmallConfig(), {.dtype = DType::kI32}, dir.File("sub")).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace photon
