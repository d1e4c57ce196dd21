// Which devices compute, and what is said where they cannot.
#include "server/engines.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "engine/cpu/host_memory.h"
#include "tests/engine/cpu/engine_fixtures.h"

namespace photon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

EngineOptions SmallEngineOptions(const std::string& devices) {
  EngineOptions options;
  options.devices = *Devices::Parse(devices);
  options.kv_memory = MemoryBudget::Bytes(4 << 20);
  options.page_tokens = 32;
  options.max_rows = 3;
  options.max_prefill_tokens = 64;
  return options;
}

// Opens what cannot be opened.
absl::Status Error(const EngineOptions& options) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  return OpenEngines(*checkpoint, options).status();
}

TEST(Devices, AreReadFromAList) {
  EXPECT_EQ(Devices::Parse("auto")->kind, Devices::Kind::kAuto);
  EXPECT_EQ(Devices::Parse("cpu")->kind, Devices::Kind::kCpu);
  EXPECT_EQ(Devices::Parse("cpu")->cpu_replicas, 1);
  EXPECT_EQ(Devices::Parse("cpu,cpu,cpu")->cpu_replicas, 3);
  EXPECT_EQ(Devices::Parse("cuda")->kind, Devices::Kind::kCuda);
  EXPECT_THAT(Devices::Parse("cuda")->cuda_devices, IsEmpty());
  EXPECT_THAT(Devices::Parse("cuda:3")->cuda_devices, ElementsAre(3));
  EXPECT_THAT(Devices::Parse("cuda:2,cuda:0")->cuda_devices, ElementsAre(2, 0));
}

TEST(Devices, SayWhatIsWrongWithAList) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "has the unknown device \"\""},
      {"gpu", "has the unknown device \"gpu\""},
      {"cpu,", "has the unknown device \"\""},
      {"auto,cpu", "has the unknown device \"auto\""},
      {"cuda,cuda:1", "has the unknown device \"cuda\""},
      {"cuda:", "has no device number in \"cuda:\""},
      {"cuda:-1", "has no device number in \"cuda:-1\""},
      {"cuda:1x", "has no device number in \"cuda:1x\""},
      {"cuda:99999999999", "has no device number"},
      {"cuda:1,cuda:1", "names cuda:1 twice"},
      {"cpu,cuda:0", "mixes devices of two kinds"},
  };
  for (const auto& [text, problem] : cases) {
    const absl::Status status = Devices::Parse(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(problem)) << text;
  }
}

TEST(OpenEngines, MakesAReplicaForEachProcessorOfTheList) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  const auto engines = OpenEngines(*checkpoint, SmallEngineOptions("cpu,cpu"));
  ASSERT_TRUE(engines.ok()) << engines.status();
  ASSERT_EQ(engines->size(), 2u);
  const EngineShape& shape = (*engines)[0]->shape();
  EXPECT_THAT(shape.device, StartsWith("cpu"));
  EXPECT_EQ(shape.max_rows, 3);
  EXPECT_EQ(shape.page_tokens, 32);
  EXPECT_EQ((*engines)[1]->shape().num_pages, shape.num_pages);
  EXPECT_EQ(Generate(*(*engines)[0], {1, 2, 3}, 1).tokens,
            Generate(*(*engines)[1], {1, 2, 3}, 1).tokens);
}

TEST(OpenEngines, ReplicasOnTheProcessorDivideAShareOfItsMemory) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  EngineOptions options = SmallEngineOptions("cpu,cpu,cpu,cpu");
  // The others of the machine take and give back memory meanwhile: a factor of two is left to them.
  options.kv_memory = MemoryBudget::ShareOfFree(4e-3);
  const auto free = FreeHostMemory();
  ASSERT_TRUE(free.ok());
  const auto engines = OpenEngines(*checkpoint, options);
  ASSERT_TRUE(engines.ok()) << engines.status();
  for (const auto& engine : *engines) {
    const double pool = double{1} * engine->shape().num_pages * engine->shape().page_bytes;
    EXPECT_GT(pool, 0.5e-3 * static_cast<double>(*free));
    EXPECT_LT(pool, 2e-3 * static_cast<double>(*free));
  }
}

TEST(OpenEngines, ReplicasTogetherGetNoMoreMemoryThanThereIs) {
  const auto free = FreeHostMemory();
  ASSERT_TRUE(free.ok());
  EngineOptions options = SmallEngineOptions("cpu,cpu,cpu");
  options.kv_memory = MemoryBudget::Bytes(*free / 2);
  const absl::Status status = Error(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

TEST(OpenEngines, MakesAnEngineForEachGpu) {
  const auto checkpoint = RandomCheckpoint(SmallConfigs()[0].config);
  for (const auto& [devices, names] :
       {std::pair("auto", std::vector<std::string>{"cuda:0", "cuda:1"}),
        std::pair("cuda", std::vector<std::string>{"cuda:0", "cuda:1"}),
        std::pair("cuda:1", std::vector<std::string>{"cuda:1"}),
        std::pair("cuda:1,cuda:0", std::vector<std::string>{"cuda:1", "cuda:0"})}) {
    EngineOptions options = SmallEngineOptions(devices);
    options.cuda_plugin = FAULTY_PLUGIN;
    const auto engines = OpenEngines(*checkpoint, options);
    ASSERT_TRUE(engines.ok()) << engines.status();
    ASSERT_EQ(engines->size(), names.size()) << devices;
    for (size_t i = 0; i < names.size(); ++i) {
      EXPECT_THAT((*engines)[i]->shape().device, StartsWith(names[i])) << devices;
    }
  }
}

TEST(OpenEngines, AGpuThatIsNotThereIsAnError) {
  EngineOptions options = SmallEngineOptions("cuda:7");
  options.cuda_plugin = FAULTY_PLUGIN;
  EXPECT_EQ(Error(options),
            absl::FailedPreconditionError("device cuda:7: cuda: no device 7, there are 2"));
}

TEST(OpenEngines, AModuleThatCannotBeUsedIsAnErrorWhereAGpuIsAskedFor) {
  EngineOptions options = SmallEngineOptions("cuda");
  options.cuda_plugin = "/nowhere/plugin.so";
  const absl::Status status = Error(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nowhere/plugin.so"));
}

TEST(OpenEngines, ASettingWithoutEffectIsRefused) {
  EngineOptions options = SmallEngineOptions("cuda");
  options.cuda_plugin = FAULTY_PLUGIN;
  options.threads = 2;
  EXPECT_EQ(Error(options), absl::InvalidArgumentError("threads: has no effect on a GPU"));
}

TEST(OpenEngines, TheProcessorRefusesToQuantise) {
  EngineOptions options = SmallEngineOptions("cpu");
  options.quantization = EngineOptions::Quantization::kFp8;
  const absl::Status status = Error(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("quantization: fp8 needs a GPU"));
}

}  // namespace
}  // namespace photon
