// The CUDA engine with e4m3 weights, against the reference forward pass and the engine in bf16.
#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "engine/cuda/cuda_engine.h"
#include "engine/cuda/kernels/quantised_rows.h"
#include "engine/model/float_bits.h"
#include "gmock/gmock.h"
#include "tests/engine/cpu/engine_fixtures.h"
#include "tests/engine/cpu/reference_model.h"
#include "tests/engine/cuda/gpu_fixture.h"

namespace photon {
namespace {

using ::testing::HasSubstr;
using Compute = CudaEngineOptions::Compute;
using Quantization = CudaEngineOptions::Quantization;

// As in cuda_engine_test.cc.
constexpr double kBFloat16Tolerance = 0.04;
// e4m3 numbers are 2^-3 of their power of two apart: rounding is off by that / sqrt(12), 2.5 % of a
// number in the middle. Along the longest path are 8 layers with 5 products each (gate and up are
// multiplied), 2 converters and 2 chunkers, and each rounds weights and inputs: 2.5 % * sqrt(88) is
// 24 %. These are random weights, whose logits have nothing in common to hold on to.
constexpr double kQuantisationError = 0.35;

CudaEngineOptions Options(Quantization quantization) {
  return {.compute = Compute::kBF16,
          .quantization = quantization,
          .kv_memory = MemoryBudget::Bytes(8 << 20),
          .page_tokens = 32,
          .max_rows = 10,
          .max_prefill_tokens = 512,
          .use_graphs = false};
}

bool HasQuantizedProducts(int device) {
  cudaDeviceProp properties;
  return cudaGetDeviceProperties(&properties, device) == cudaSuccess && properties.major == 9 &&
         properties.minor == 0;
}

class QuantisedEngine : public cuda::OnGpu {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (!IsSkipped() && !HasQuantizedProducts(0)) {
      GTEST_SKIP() << "fp8 needs compute capability 9.0";
    }
  }
};

std::unique_ptr<Engine> MakeCudaEngine(const Checkpoint& checkpoint,
                                       const CudaEngineOptions& options) {
  auto engine = CreateCudaEngine(checkpoint, options);
  EXPECT_TRUE(engine.ok()) << engine.status().ToString();
  return *std::move(engine);
}

// Two layers in every stack; sizes are multiples of 16, heads are not.
ModelConfig Config() {
  const auto stack = [](int hidden, int heads, int head_dim, int intermediate) {
    return StackConfig{.hidden_size = hidden,
                       .num_layers = 2,
                       .num_heads = heads,
                       .num_kv_heads = heads,
                       .head_dim = head_dim,
                       .intermediate_size = intermediate};
  };
  ModelConfig config{.vocab_size = 131, .embedding_dim = 48, .max_context = 256};
  config.levels = {{.chunk_size = 4,
                    .converter_width = 2,
                    .chunker = {.out_norm = true, .bias = true},
                    .converter = {.in_norm = true, .bias = true},
                    .encoder_span = EncoderSpan::kBlock,
                    .encoder = stack(80, 4, 20, 112),
                    .decoder = stack(48, 4, 12, 80)},
                   {.chunk_size = 4,
                    .converter_width = 2,
                    .converter = {.out_norm = true, .bias = true},
                    .encoder = stack(112, 4, 28, 160),
                    .decoder = stack(80, 4, 20, 112)}};
  return config;
}

// Rounds a row to e4m3 under a scale of its own, as the engine does.
void RoundToE4M3(std::span<double> row) {
  double largest = 0;
  for (const double value : row) largest = std::max(largest, std::abs(value));
  if (largest == 0) return;
  const double scale = largest / cuda::kE4M3Max;
  for (double& value : row) {
    const double magnitude = std::abs(value) / scale;
    const int step = std::max(-6, magnitude == 0 ? -6 : std::ilogb(magnitude)) - 3;
    value = std::copysign(std::ldexp(std::nearbyint(std::ldexp(magnitude, -step)), step) * scale,
                          value);
  }
}

// Error of a lone row's logits, meta-context by meta-context, against the reference.
double ErrorAgainst(ReferenceModel reference, const ModelConfig& config, Engine& engine) {
  const auto tokens = RandomTokens(config.meta_tokens() + 2, config.vocab_size, 7);
  std::vector<float> logits;
  std::vector<double> expected;
  for (const auto& row : TeacherForcedLogits(engine, tokens)) {
    logits.insert(logits.end(), row.begin(), row.end());
  }
  for (const auto& row : reference.Logits(tokens)) {
    expected.insert(expected.end(), row.begin(), row.end());
  }
  return RelativeError(logits, expected);
}

// Few rows compute in bf16 with weights in e4m3.
TEST_F(QuantisedEngine, FewRowsMatchTheReferenceWithQuantisedWeights) {
  const auto checkpoint = RandomCheckpoint(Config());
  const auto engine = MakeCudaEngine(*checkpoint, Options(Quantization::kFp8));
  EXPECT_THAT(engine->shape().device, HasSubstr("fp8"));
  const ReferenceModel reference(*checkpoint, {.weights = RoundToE4M3});
  EXPECT_LT(ErrorAgainst(reference, Config(), *engine), kBFloat16Tolerance);
}

std::vector<TokenId> Prompt(const EngineShape& shape, int i) {
  return RandomTokens(shape.meta_tokens * (1 + i % 3), shape.vocab_size, i);
}

// Ten sequences with prompts of several meta-contexts.
std::vector<Generated> Steps(Engine& engine, GenerationMode mode, int steps, bool want_logits) {
  std::vector<std::unique_ptr<Sequence>> owned;
  std::vector<Sequence*> sequences;
  for (int i = 0; i < engine.shape().max_rows; ++i) {
    owned.push_back(
        std::make_unique<Sequence>(engine.shape(), Prompt(engine.shape(), i), 8 * i, mode));
    sequences.push_back(owned.back().get());
  }
  RunSteps(engine, sequences, steps, want_logits);
  std::vector<Generated> generated;
  for (const auto& sequence : owned) generated.push_back(sequence->generated());
  return generated;
}

// The reference's logits after each of the prompts.
std::vector<double> AfterPrompts(const Checkpoint& checkpoint, const EngineShape& shape,
                                 const Quantisation& quantisation) {
  ReferenceModel reference(checkpoint, quantisation);
  std::vector<double> logits;
  for (int i = 0; i < shape.max_rows; ++i) {
    auto tokens = Prompt(shape, i);
    tokens.push_back(0);  // logits before a token do not depend on it
    const auto last = reference.Logits(tokens).back();
    logits.insert(logits.end(), last.begin(), last.end());
  }
  return logits;
}

double Distance(const std::vector<double>& a, const std::vector<double>& b) {
  return RelativeError(std::vector<float>(a.begin(), a.end()), b);
}

// Many rows quantise their inputs too. Of the first slot all modes say the same.
//
// A difference as small as bf16's rounding, 2^-9, takes a number to the other side of a boundary,
// 2^-4 of it away, about once in thirty, and the more rows differ, the more numbers cross. So the
// model is shallow, and how far rounding takes it is asked of the reference itself, which has
// rounded every input of a product to bf16 first.
TEST_F(QuantisedEngine, ManyRowsMatchTheReferenceWithQuantisedWeightsAndInputs) {
  ModelConfig config = Config();
  config.levels.erase(config.levels.begin());
  config.levels[0].decoder.hidden_size = config.embedding_dim;
  config.levels[0].encoder.num_layers = config.levels[0].decoder.num_layers = 1;
  const auto checkpoint = RandomCheckpoint(config);
  const auto engine = MakeCudaEngine(*checkpoint, Options(Quantization::kFp8));
  const auto round_twice = [](std::span<double> row) {
    for (double& value : row) value = BF16ToFloat(FloatToBF16(static_cast<float>(value)));
    RoundToE4M3(row);
  };
  const EngineShape& shape = engine->shape();
  const auto expected = AfterPrompts(*checkpoint, shape, {RoundToE4M3, RoundToE4M3});
  const auto rounded = AfterPrompts(*checkpoint, shape, {RoundToE4M3, round_twice});
  const double tolerance = 2 * Distance(rounded, expected);
  for (const GenerationMode mode : shape.modes) {
    std::vector<float> logits;
    for (const Generated& generated : Steps(*engine, mode, 1, true)) {
      logits.insert(logits.end(), generated.logits.begin(),
                    generated.logits.begin() + shape.vocab_size);
    }
    EXPECT_LT(RelativeError(logits, expected), tolerance) << "mode " << static_cast<int>(mode);
  }
}

// What quantisation costs, on the first slots of all units: no sampled token precedes them in their
// windows.
TEST_F(QuantisedEngine, ManyRowsAreNearBf16) {
  const auto checkpoint = RandomCheckpoint(Config());
  const auto quantised = MakeCudaEngine(*checkpoint, Options(Quantization::kFp8));
  const auto plain = MakeCudaEngine(*checkpoint, Options(Quantization::kNone));
  const size_t vocab = quantised->shape().vocab_size, chunk = Config().levels[0].chunk_size;
  const auto got = Steps(*quantised, GenerationMode::kHierGen, 1, true);
  const auto wanted = Steps(*plain, GenerationMode::kHierGen, 1, true);
  std::vector<float> logits;
  std::vector<double> expected;
  for (size_t row = 0; row < got.size(); ++row) {
    for (size_t at = 0; at < got[row].logits.size(); at += chunk * vocab) {
      const auto take = [&](const std::vector<float>& from, auto& to) {
        to.insert(to.end(), from.begin() + at, from.begin() + at + vocab);
      };
      take(got[row].logits, logits);
      take(wanted[row].logits, expected);
    }
  }
  const double error = RelativeError(logits, expected);
  EXPECT_LT(error, kQuantisationError);
  EXPECT_GT(error, kBFloat16Tolerance) << "nothing is quantised";
}

TEST_F(QuantisedEngine, GraphsAndLaunchesGiveTheSameBits) {
  const auto checkpoint = RandomCheckpoint(Config());
  CudaEngineOptions options = Options(Quantization::kFp8);
  const auto launched = MakeCudaEngine(*checkpoint, options);
  options.use_graphs = true;
  const auto recorded = MakeCudaEngine(*checkpoint, options);
  for (const GenerationMode mode : recorded->shape().modes) {
    EXPECT_EQ(Steps(*recorded, mode, 1, false), Steps(*launched, mode, 1, false));
  }
}

// Its stacks are of other sizes; some converters and chunkers are not.
TEST_F(QuantisedEngine, WhatIsOfOtherSizesStaysInBf16) {
  const ModelConfig config = SmallConfigs()[0].config;
  const auto checkpoint = RandomCheckpoint(config);
  const auto engine = MakeCudaEngine(*checkpoint, Options(Quantization::kFp8));
  const double error = ErrorAgainst(ReferenceModel(*checkpoint), config, *engine);
  EXPECT_LT(error, kQuantisationError);
  EXPECT_GT(error, kBFloat16Tolerance) << "nothing is quantised";
}

TEST_F(QuantisedEngine, ACheckpointOfOtherSizesIsRefused) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[3].config);
  const absl::Status status = CreateCudaEngine(*checkpoint, Options(Quantization::kFp8)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("quantization: fp8 has no effect"));
}

TEST_F(QuantisedEngine, OtherDevicesRefuse) {
  int count = 0, seen = 0;
  ASSERT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  const auto checkpoint = RandomCheckpoint(Config());
  for (int device = 0; device < count; ++device) {
    if (HasQuantizedProducts(device)) continue;
    ++seen;
    CudaEngineOptions options = Options(Quantization::kFp8);
    options.device = device;
    const absl::Status status = CreateCudaEngine(*checkpoint, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("quantization: fp8 needs compute capability 9.0"));
  }
  if (seen == 0) GTEST_SKIP() << "every device has compute capability 9.0";
}

TEST(QuantisedEngineOptions, Fp32IsRefusedBeforeAnyDeviceIsAsked) {
  const auto checkpoint = RandomCheckpoint(Config());
  CudaEngineOptions options = Options(Quantization::kFp8);
  options.compute = Compute::kF32;
  const absl::Status status = CreateCudaEngine(*checkpoint, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("quantization: fp8 quantises bf16"));
}

}  // namespace
}  // namespace photon
