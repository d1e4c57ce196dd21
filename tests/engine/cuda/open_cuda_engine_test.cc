// The door to the CUDA engine, from a program that links none of it.
#include <string>

#include "engine/cuda/cuda_plugin.h"
#include "gmock/gmock.h"
#include "tests/engine/cpu/engine_fixtures.h"

namespace photon {
namespace {

using ::testing::StartsWith;

TEST(OpenCudaEngine, EitherOpensOrSaysWhyNot) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  const auto engine = OpenCudaEngine(*checkpoint, {.kv_memory = MemoryBudget::Bytes(4 << 20),
                                                   .page_tokens = 32,
                                                   .max_rows = 2,
                                                   .max_prefill_tokens = 64});
  if (!engine.ok()) {
    // No module, no CUDA libraries, no driver or no device: all the operator's to change.
    EXPECT_EQ(engine.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(engine.status().message()), StartsWith("cuda: "));
    return;
  }
  EXPECT_THAT((*engine)->shape().device, StartsWith("cuda:0"));
  EXPECT_EQ(Generate(**engine, {1, 2, 3}, 1).tokens.size(),
            static_cast<size_t>((*engine)->shape().meta_tokens - 3));
}

}  // namespace
}  // namespace photon
