#include "client/plan.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "engine/model/cost_model.h"
#include "engine/model/strict_json.h"

namespace photon {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr double kDefaultShare = 0.9;

// Assumed: code, streams, activations and the allocator's slack on the host; the driver's context
// and the libraries' workspaces on a card, and their share of the host's memory.
constexpr int64_t kHostBytes = 256 * kMiB;
constexpr int64_t kCardBytes = 1024 * kMiB;
constexpr int64_t kCardHostBytes = 2048 * kMiB;

constexpr int kCpuAlignment = 64;
constexpr int kGpuAlignment = 256;

// Enough prompt tokens in a step for its weights' bytes not to matter.
constexpr int kPrefillTokens = 2048;

int64_t RoundUp(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

int ContextOf(const PlanOptions& options) {
  return options.context > 0 ? options.context : options.config.max_context;
}

int MaxRowsOf(const PlanOptions& options) {
  if (options.max_rows != 0) return options.max_rows;
  return options.machine.is_gpu ? 256 : 64;
}

absl::Status Validate(const PlanOptions& options) {
  const auto check = [](const char* name, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected ", least, " to ", most, ", got ", value));
  };
  for (const absl::Status& status :
       {check("context", ContextOf(options), 1, options.config.max_context),
        check("page-tokens", options.page_tokens, 1, 1 << 20),
        check("max-rows", MaxRowsOf(options), 1, 1 << 16),
        check("sequences", options.sequences.value_or(1), 1, 1 << 30)}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status DoesNotFit(const Machine& machine, int64_t needed, const std::string& for_what) {
  return absl::ResourceExhaustedError(absl::StrCat(machine.name, " has ", machine.memory_bytes,
                                                   " bytes of memory, and ", for_what, " take ",
                                                   needed));
}

// Decides the pool's size, and with it how much memory there is where that is not given.
absl::Status FillMemory(const PlanOptions& options, Plan& plan) {
  const Machine& machine = options.machine;
  // A processor's engine packs its own copy of the weights, and the checkpoint stays mapped.
  const int64_t fixed = (machine.is_gpu ? 1 : 2) * plan.weight_bytes + plan.working_bytes;
  std::optional<MemoryBudget> budget = options.kv_memory;
  if (!budget && options.sequences) {
    budget = MemoryBudget::Bytes(*options.sequences * plan.bytes_per_sequence);
  }
  if (!budget) budget = MemoryBudget::ShareOfFree(kDefaultShare);
  if (machine.memory_bytes > 0) {
    const int64_t free = machine.memory_bytes - fixed;
    if (free <= 0) return DoesNotFit(machine, fixed, "weights and working memory");
    plan.pool_bytes = budget->Resolve(free);
    if (plan.pool_bytes > free) {
      return DoesNotFit(machine, fixed + plan.pool_bytes, "weights, working memory and cache");
    }
    plan.memory_bytes = machine.memory_bytes;
  } else if (budget->is_share()) {
    return absl::InvalidArgumentError("memory: needed, or kv-memory in bytes, or sequences");
  } else {
    plan.pool_bytes = budget->Resolve(0);
    plan.memory_bytes = RoundUp(fixed + plan.pool_bytes, kMiB);
  }
  plan.num_pages = plan.pool_bytes / plan.page_bytes;
  plan.sequences = plan.num_pages / plan.pages_per_sequence;
  // A card's pool is a share of what its driver says is free; a pod's limit is known beforehand.
  plan.kv_memory = machine.is_gpu && budget->is_share()
                       ? absl::StrCat(std::lround(100 * budget->Resolve(1'000'000) / 1e6), "%")
                       : absl::StrCat(plan.pool_bytes);
  plan.host_bytes =
      machine.is_gpu ? RoundUp(plan.weight_bytes + kCardHostBytes, kMiB) : plan.memory_bytes;
  if (plan.sequences < 1) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a cache of ", plan.pool_bytes, " bytes holds no sequence of ", plan.context,
                     " tokens, which takes ", plan.bytes_per_sequence));
  }
  return absl::OkStatus();
}

std::vector<std::pair<std::string, GenerationMode>> Modes(const ModelConfig& config) {
  std::vector<std::pair<std::string, GenerationMode>> modes = {
      {"exact", GenerationMode::kExact}, {"hiergen", GenerationMode::kHierGen}};
  if (config.num_levels() > 1) modes.emplace_back("recgen", GenerationMode::kRecGen);
  return modes;
}

bool HasRates(const Machine& machine) {
  return machine.bytes_per_second > 0 && machine.flops > 0;
}

}  // namespace

const std::vector<Machine>& KnownCards() {
  constexpr int64_t kGB = 1'000'000'000;
  static const std::vector<Machine> kCards = {
      {"a100-40gb", true, 40 * kGB, 1.555e12, 312e12},
      {"a100-80gb", true, 80 * kGB, 2.039e12, 312e12},
      {"l4", true, 24 * kGB, 0.300e12, 121e12},
      {"l40s", true, 48 * kGB, 0.864e12, 362e12},
      {"h100", true, 80 * kGB, 3.35e12, 989e12},
      {"h200", true, 141 * kGB, 4.8e12, 989e12},
      {"b200", true, 180 * kGB, 8.0e12, 2250e12},
  };
  return kCards;
}

Rate BoundRate(const PlanOptions& options, std::string_view phase, int rows, int context) {
  const ModelConfig& config = options.config;
  const int meta = config.meta_tokens();
  Rate rate{.phase = std::string(phase), .rows = rows};
  double flops = 0, bytes = 0;  // of one step
  int tokens = 0;
  if (phase == "prefill") {
    tokens = rows * RoundUp(kPrefillTokens, meta);
    const Cost cost = PrefillCost(config, options.element_bytes);
    flops = cost.flops * tokens;
    bytes = cost.weight_bytes * meta;
  } else {
    tokens = rows * meta;
    GenerationMode mode = GenerationMode::kExact;
    for (const auto& [name, value] : Modes(config)) {
      if (name == phase) mode = value;
    }
    const Cost cost = DecodeCost(config, mode, options.element_bytes);
    const ContextCost context_cost =
        ContextCostPerMetaContext(config, mode, context, options.element_bytes);
    flops = cost.flops * tokens + context_cost.flops * rows;
    bytes = cost.weight_bytes * meta + context_cost.kv_bytes * rows;
  }
  const double reads_s = bytes / options.machine.bytes_per_second;
  const double products_s = flops / options.machine.flops;
  rate.is_bound_by_reads = reads_s > products_s;
  rate.tokens_per_second = tokens / std::max(reads_s, products_s);
  return rate;
}

absl::StatusOr<Plan> MakePlan(const PlanOptions& options) {
  if (absl::Status status = Validate(options); !status.ok()) return status;
  const ModelConfig& config = options.config;
  const Machine& machine = options.machine;
  Plan plan{.machine = machine,
            .element_bytes = options.element_bytes,
            .context = ContextOf(options),
            .meta_tokens = config.meta_tokens(),
            .max_rows = MaxRowsOf(options)};
  plan.parameters = NumParameters(config);
  plan.weight_bytes = plan.parameters * options.element_bytes;
  plan.kv_bytes_per_token = KvBytesPerToken(config, options.element_bytes);
  plan.page_tokens = static_cast<int>(RoundUp(options.page_tokens, plan.meta_tokens));
  plan.page_bytes = CachePageBytes(config, plan.page_tokens, options.element_bytes,
                                   machine.is_gpu ? kGpuAlignment : kCpuAlignment);
  plan.pages_per_sequence =
      static_cast<int>(RoundUp(plan.context, plan.page_tokens) / plan.page_tokens);
  plan.bytes_per_sequence = plan.pages_per_sequence * plan.page_bytes;
  plan.working_bytes = plan.max_rows * StepBytesPerRow(config, options.element_bytes) +
                       (machine.is_gpu ? kCardBytes : kHostBytes);
  if (absl::Status status = FillMemory(options, plan); !status.ok()) return status;

  if (HasRates(machine)) {
    const int most = static_cast<int>(std::min<int64_t>(plan.sequences, plan.max_rows));
    plan.rates.push_back(BoundRate(options, "prefill", 1, plan.context));
    for (const auto& [phase, mode] : Modes(config)) {
      plan.rates.push_back(BoundRate(options, phase, 1, plan.context));
      if (most > 1) plan.rates.push_back(BoundRate(options, phase, most, plan.context));
    }
  }
  return plan;
}

absl::StatusOr<Measurements> ReadMeasurements(const std::string& path, const PlanOptions& options) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  const auto json =
      ParseStrictJson(text, {.max_bytes = 1 << 20, .max_values = 1 << 14, .max_depth = 8});
  if (!json.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", std::string(json.status().message())));
  }
  try {
    const int64_t parameters = json->at("parameters").get<int64_t>();
    if (parameters != NumParameters(options.config)) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": is of a model of ", parameters,
                                                     " parameters, this one has ",
                                                     NumParameters(options.config)));
    }
    Measurements measured{.device = json->at("device").get<std::string>(),
                          .context = json->at("context").get<int>()};
    for (const nlohmann::json& row : json->at("rows")) {
      Measurement& m = measured.rows.emplace_back();
      m.phase = row.at("phase").get<std::string>();
      m.rows = row.at("batch").get<int>();
      m.tokens_per_second = row.at("tokens_per_second").get<double>();
      if (HasRates(options.machine)) {
        m.share_of_bound = m.tokens_per_second /
                           BoundRate(options, m.phase, m.rows, measured.context).tokens_per_second;
      }
    }
    return measured;
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": no report of photon-engine-bench: ", error.what()));
  }
}

}  // namespace photon
