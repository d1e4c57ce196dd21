// The door to the CUDA engine, from a program that links none of it.
#include "engine/cuda/cuda_plugin.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/engine/cpu/engine_fixtures.h"

namespace photon {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// What a message about a module that cannot be used says; it is the operator's to change.
void ExpectUnusable(const std::string& path, const std::string& reason) {
  const auto plugin = CudaPlugin::Open(path);
  ASSERT_FALSE(plugin.ok());
  EXPECT_EQ(plugin.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(plugin.status().message()),
              AllOf(StartsWith("cuda: "), HasSubstr(path), HasSubstr(reason)));
}

TEST(CudaPlugin, EitherComputesOrSaysWhyNot) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  absl::StatusOr<std::unique_ptr<Engine>> engine;
  const auto plugin = CudaPlugin::Open("");
  if (plugin.ok()) {
    engine = plugin->CreateEngine(*checkpoint, {.kv_memory = MemoryBudget::Bytes(4 << 20),
                                                .page_tokens = 32,
                                                .max_rows = 2,
                                                .max_prefill_tokens = 64});
  } else {
    engine = plugin.status();
  }
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

TEST(CudaPlugin, AMissingModuleIsNamed) {
  ExpectUnusable("/nowhere/libphoton_cuda_plugin.so", "No such file");
}

TEST(CudaPlugin, AModuleOfAnotherVersionIsRefused) {
  ExpectUnusable(OTHER_VERSION_PLUGIN, absl::StrCat("has version ", kCudaPluginVersion - 1,
                                                    ", the program ", kCudaPluginVersion));
}

TEST(CudaPlugin, AModuleWithoutEntriesIsRefused) {
  ExpectUnusable(EMPTY_PLUGIN, "is no engine of this program");
}

TEST(CudaPlugin, AModuleThatTheProgramDoesNotLinkComputes) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  const auto plugin = CudaPlugin::Open(FAULTY_PLUGIN);
  ASSERT_TRUE(plugin.ok()) << plugin.status();
  EXPECT_EQ(plugin->CountDevices().value(), 2);
  const auto engine = plugin->CreateEngine(
      *checkpoint,
      {.device = 1, .kv_memory = MemoryBudget::Bytes(4 << 20), .page_tokens = 32, .max_rows = 2});
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_THAT((*engine)->shape().device, StartsWith("cuda:1"));
  EXPECT_EQ(Generate(**engine, {1, 2, 3}, 1).tokens.size(),
            static_cast<size_t>((*engine)->shape().meta_tokens - 3));
}

TEST(CudaPlugin, ADeviceThatIsNotThereIsNamed) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  const auto plugin = CudaPlugin::Open(FAULTY_PLUGIN);
  ASSERT_TRUE(plugin.ok()) << plugin.status();
  const auto engine = plugin->CreateEngine(*checkpoint, {.device = 2});
  EXPECT_EQ(engine.status(), absl::FailedPreconditionError("cuda: no device 2, there are 2"));
}

}  // namespace
}  // namespace photon
