#include "server/engines.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <future>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/cpu/cpu_engine.h"
#include "engine/cuda/cuda_plugin.h"

namespace photon {
namespace {

using Engines = std::vector<std::unique_ptr<Engine>>;

constexpr std::string_view kCudaPrefix = "cuda:";
constexpr int kMaxCpuReplicas = 64;

absl::Status Invalid(std::string_view text, const std::string& problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("expected auto, cpu, cuda, or a list as cuda:0,cuda:1 or cpu,cpu: \"",
                   std::string(text), "\" ", problem));
}

// The options that both kinds of engine have.
template <typename Options>
Options Common(const EngineOptions& options) {
  using Compute = typename Options::Compute;
  Options common;
  common.compute =
      options.compute == EngineOptions::Compute::kBF16 ? Compute::kBF16 : Compute::kF32;
  common.kv_memory = options.kv_memory.value_or(common.kv_memory);
  common.page_tokens = options.page_tokens.value_or(common.page_tokens);
  common.max_rows = options.max_rows.value_or(common.max_rows);
  common.max_prefill_tokens = options.max_prefill_tokens.value_or(common.max_prefill_tokens);
  return common;
}

absl::StatusOr<Engines> OpenCpuEngines(const Checkpoint& checkpoint, const EngineOptions& options,
                                       int replicas) {
  if (options.quantization != EngineOptions::Quantization::kNone) {
    return absl::InvalidArgumentError(
        "quantization: fp8 needs a GPU; the processor has bf16 and f32");
  }
  auto cpu = Common<CpuEngineOptions>(options);
  const int processors = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  cpu.threads = options.threads == 0 ? std::max(1, processors / replicas) : options.threads;
  cpu.allotted = options.allotted;
  const MemoryBudget budget = cpu.kv_memory;
  Engines engines;
  for (int i = 0; i < replicas; ++i) {
    if (budget.is_share()) cpu.kv_memory = budget.Part(i, replicas);
    auto engine = CreateCpuEngine(checkpoint, cpu);
    if (!engine.ok()) return engine.status();
    engines.push_back(*std::move(engine));
  }
  return engines;
}

absl::StatusOr<Engines> OpenCudaEngines(const Checkpoint& checkpoint, const EngineOptions& options,
                                        const CudaPlugin& plugin, std::vector<int> devices,
                                        int count) {
  if (options.threads != 0) {
    return absl::InvalidArgumentError("threads: has no effect on a GPU");
  }
  if (devices.empty()) {
    devices.resize(count);
    std::iota(devices.begin(), devices.end(), 0);
  }
  // Each takes seconds.
  std::vector<std::future<absl::StatusOr<std::unique_ptr<Engine>>>> created;
  for (const int device : devices) {
    auto cuda = Common<CudaEngineOptions>(options);
    cuda.device = device;
    if (options.quantization == EngineOptions::Quantization::kFp8) {
      cuda.quantization = CudaEngineOptions::Quantization::kFp8;
    }
    cuda.on_recorded = [device, quarter = 1](int recorded, int total, int64_t bytes) mutable {
      if (recorded * 4 < quarter * total) return;
      quarter = recorded * 4 / total + 1;
      spdlog::info("cuda:{}: recorded {} of {} graphs, {} MiB", device, recorded, total,
                   bytes >> 20);
    };
    created.push_back(std::async(std::launch::async, [&checkpoint, &plugin, cuda] {
      return plugin.CreateEngine(checkpoint, cuda);
    }));
  }
  Engines engines;
  absl::Status status;
  for (size_t i = 0; i < created.size(); ++i) {
    auto engine = created[i].get();
    if (engine.ok()) {
      engines.push_back(*std::move(engine));
    } else {
      status.Update(
          absl::Status(engine.status().code(),
                       absl::StrCat("device cuda:", devices[i], ": ", engine.status().message())));
    }
  }
  if (!status.ok()) return status;
  return engines;
}

}  // namespace

absl::StatusOr<Devices> Devices::Parse(std::string_view text) {
  if (text == "auto") return Devices{};
  if (text == "cuda") return Devices{.kind = Kind::kCuda};
  Devices devices;
  devices.cpu_replicas = 0;
  for (std::string_view rest = text;;) {
    const std::string_view name = rest.substr(0, rest.find(','));
    if (name == "cpu") {
      ++devices.cpu_replicas;
    } else if (name.starts_with(kCudaPrefix)) {
      const std::string_view number = name.substr(kCudaPrefix.size());
      int index = -1;
      const auto [end, error] = std::from_chars(number.begin(), number.end(), index);
      if (error != std::errc() || end != number.end() || index < 0) {
        return Invalid(text, absl::StrCat("has no device number in \"", std::string(name), "\""));
      }
      if (std::count(devices.cuda_devices.begin(), devices.cuda_devices.end(), index) > 0) {
        return Invalid(text, absl::StrCat("names ", std::string(name), " twice"));
      }
      devices.cuda_devices.push_back(index);
    } else {
      return Invalid(text, absl::StrCat("has the unknown device \"", std::string(name), "\""));
    }
    if (name.size() == rest.size()) break;
    rest.remove_prefix(name.size() + 1);
  }
  if (devices.cpu_replicas > 0 && !devices.cuda_devices.empty()) {
    return Invalid(text, "mixes devices of two kinds");
  }
  if (devices.cpu_replicas > kMaxCpuReplicas) {
    return Invalid(text, absl::StrCat("has more than ", kMaxCpuReplicas, " replicas"));
  }
  devices.kind = devices.cpu_replicas > 0 ? Kind::kCpu : Kind::kCuda;
  return devices;
}

absl::StatusOr<std::vector<std::unique_ptr<Engine>>> OpenEngines(const Checkpoint& checkpoint,
                                                                 const EngineOptions& options) {
  const Devices& devices = options.devices;
  if (devices.kind == Devices::Kind::kCpu) {
    return OpenCpuEngines(checkpoint, options, devices.cpu_replicas);
  }
  const bool is_auto = devices.kind == Devices::Kind::kAuto;
  const auto fall_back = [&](const std::string& reason) {
    spdlog::info("device auto: {}; the processor computes", reason);
    return OpenCpuEngines(checkpoint, options, 1);
  };
  // The module brings hundreds of megabytes of libraries along.
  if (is_auto && options.cuda_plugin.empty() && !HasCudaDriver()) {
    return fall_back("no NVIDIA driver");
  }
  const absl::StatusOr<CudaPlugin> plugin = CudaPlugin::Open(options.cuda_plugin);
  if (!plugin.ok()) {
    const char* advice = is_auto ? "; --device cpu does without" : "";
    return absl::FailedPreconditionError(absl::StrCat(plugin.status().message(), advice));
  }
  const absl::StatusOr<int> count = plugin->CountDevices();
  if (!count.ok()) {
    if (is_auto && absl::IsNotFound(count.status())) {
      return fall_back(std::string(count.status().message()));
    }
    const char* cause = HasCudaDriver() ? "" : "; there is no NVIDIA driver (libcuda.so.1)";
    return absl::FailedPreconditionError(absl::StrCat(count.status().message(), cause));
  }
  return OpenCudaEngines(checkpoint, options, *plugin, devices.cuda_devices, *count);
}

}  // namespace photon
