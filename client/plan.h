// What a checkpoint needs and could do at most, by arithmetic on its config alone: memory, how many
// sequences fit, and the tokens per second that operations and bandwidth allow.
//
// Nothing is measured or asked for over the network. docs/operate/size.md is the manual.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/memory_budget.h"
#include "engine/model/config.h"
#include "engine/types.h"

namespace photon {

// What computes. Rates are upper bounds; 0: unknown, and no tokens per second are told.
struct Machine {
  std::string name;  // "h100"; "cpu" where the processor computes
  bool is_gpu = false;
  int64_t memory_bytes = 0;  // the card's, or what a pod may take; 0: as much as is needed
  double bytes_per_second = 0;
  double flops = 0;  // per second, dense bf16 products
};

// GPUs by the rates of their vendor's data sheets, which no program reaches.
const std::vector<Machine>& KnownCards();

struct PlanOptions {
  ModelConfig config;
  Machine machine;
  int element_bytes = 2;  // of weights and cache: 2 for bf16, 4 for f32
  // Of what weights and working memory leave. Absent: what `sequences` take or, without them, 90%.
  std::optional<MemoryBudget> kv_memory;
  std::optional<int> sequences;  // at a time, of `context` tokens each
  int context = 0;               // tokens of a sequence; 0: max_context
  int page_tokens = 256;         // rounded up to whole meta-contexts
  int max_rows = 0;              // 0: photon-server's default, 64, or 256 on a GPU
};

// Throughput of one phase with so many sequences at work, bounded by arithmetic.
struct Rate {
  std::string phase;  // "prefill", "exact", "hiergen" or "recgen"
  int rows = 0;
  double tokens_per_second = 0;
  bool is_bound_by_reads = false;  // else by operations
};

struct Plan {
  Machine machine;
  int element_bytes = 0;
  int context = 0;
  int meta_tokens = 0;
  int max_rows = 0;

  int64_t parameters = 0;
  int64_t weight_bytes = 0;
  double kv_bytes_per_token = 0;
  int page_tokens = 0;
  int64_t page_bytes = 0;
  int pages_per_sequence = 0;
  int64_t bytes_per_sequence = 0;  // whole pages, nothing shared

  int64_t working_bytes = 0;  // on the device, beside weights and pool
  int64_t pool_bytes = 0;
  int64_t memory_bytes = 0;  // of the device: all that it has, or on a processor all that is needed
  int64_t host_bytes = 0;    // of the process in the host's memory
  int64_t num_pages = 0;
  int64_t sequences = 0;    // of `context` tokens that the pool holds at a time
  std::string kv_memory;    // as photon-server's flag takes it
  std::vector<Rate> rates;  // of one sequence and of as many as run; empty: rates are unknown
};

// kInvalidArgument: an option out of range, saying which and the limit. kResourceExhausted: it does
// not fit, saying what is needed and what there is.
absl::StatusOr<Plan> MakePlan(const PlanOptions& options);

// The most that arithmetic allows for `phase`, as in Rate, on a machine of known rates.
Rate BoundRate(const PlanOptions& options, std::string_view phase, int rows, int context);

// A figure of photon-engine-bench, and the bound of the plan's machine at the same rows and
// context.
struct Measurement {
  std::string phase;
  int rows = 0;
  double tokens_per_second = 0;
  double share_of_bound = 0;  // 0: rates are unknown
};

struct Measurements {
  std::string device;
  int context = 0;
  std::vector<Measurement> rows;
};

// Reads what `photon-engine-bench --json` wrote. kNotFound, or kInvalidArgument: no such report, or
// one of another model.
absl::StatusOr<Measurements> ReadMeasurements(const std::string& path, const PlanOptions& options);

}  // namespace photon
