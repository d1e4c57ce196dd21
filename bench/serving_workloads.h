// The workloads of photon-serving-bench: what is compared with what.
//
// Variants of a workload are run in turn, again and again, so that what else the machine does falls
// on all of them alike. Figures are medians over the rounds; a ratio is the median of the rounds'
// ratios.
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/length_mix.h"
#include "bench/metrics_scrape.h"
#include "bench/progress_bar.h"
#include "bench/serving_load.h"
#include "bench/serving_target.h"

namespace photon {

struct WorkloadOptions {
  int repeats = 5;
  double seconds = 2;            // of a window of a closed loop
  double warm_up_seconds = 0.5;  // before it
  uint64_t seed = 1;
  float temperature = 1;
  GenerationMode mode = GenerationMode::kExact;

  // Of each workload, by name; none: all.
  std::vector<std::string> variants;

  ServiceLevel level;
  // host:port whose /metrics is scraped around each load; empty: none.
  std::string metrics_address;

  // Closed loops, and calls sent together, which are exactly so long: lengths are drawn from half
  // to one and a half of these, or from the LengthMix of that name.
  std::vector<int> clients = {1, 8, 64, 128};
  int prompt_tokens = 128;
  int output_tokens = 128;
  std::string mix;
  // Open loops: calls a second, arriving as a Poisson process.
  std::vector<double> rates = {1, 2, 4, 8};
  // Of the engine alone, by rows: what "overhead" compares closed loops of so many with.
  std::map<int, double> engine_tokens_per_second;

  // Questions over one document.
  int questions = 64;
  int document_tokens = 8192;
  int question_tokens_min = 32;
  int question_tokens_max = 64;
  int answer_tokens = 32;
  // Documents x questions of each x samples of each.
  std::vector<int> mix_documents = {1, 4};
  std::vector<int> mix_questions = {1, 16};
  std::vector<int> mix_samples = {1, 4};

  // Samples of one prompt.
  std::vector<int> samples = {1, 16, 64};
  int sample_prompt_tokens = 512;

  // Memory of a sequence alone and of samples that share all but their last page, by length; and a
  // prompt arriving among streams.
  std::vector<int> lengths = {512, 1024, 4096, 8192};
  int element_bytes = 2;  // of keys and values
  int streams = 32;
};

class Workloads {
 public:
  // Prints a row per variant to stdout, and its progress to stderr where that is a terminal.
  // `target` outlives the object.
  Workloads(ServingTarget* target, const WorkloadOptions& options);

  // "throughput", "together", "open-loop", "overhead", "questions", "mix", "samples", "modes",
  // "memory" and "arrival".
  static std::vector<std::string> Names();

  // kFailedPrecondition: the checkpoint's context or the pool is too small for the workload, or the
  // scheduler's figures that it needs are out of reach. Otherwise a failed call's error.
  absl::Status Run(const std::string& name);

  // [{workload, variants: [{name, median, repeats}], ratios}]
  const nlohmann::json& report() const { return report_; }
  // A line of titles, then one for each round of each variant.
  std::string ReportAsCsv() const;

 private:
  struct Variant {
    std::string name;
    std::function<absl::StatusOr<nlohmann::json>(int round)> run;
  };

  absl::Status RunThroughput();
  absl::Status RunTogetherEach();
  absl::Status RunOpenLoops();
  absl::Status RunOverhead();
  absl::Status RunQuestions();
  absl::Status RunMix();
  absl::Status RunSamples();
  absl::Status RunModes();
  absl::Status RunMemory();
  absl::Status RunArrivals();

  // Runs and reports. Ratios are of tokens_per_second to the first variant's.
  absl::StatusOr<nlohmann::json> Measure(const std::string& workload,
                                         std::vector<Variant> variants);
  void PrintTable(const nlohmann::json& measured) const;
  absl::Status CheckContext(const std::string& what, int tokens) const;

  // Tokens of a text that no other text begins like; the same for the same three numbers.
  std::vector<TokenId> Text(uint64_t kind, uint64_t index, int tokens) const;
  // From half to one and a half of `mean`.
  int DrawLength(uint64_t kind, uint64_t index, int mean) const;
  ServingCall LoadCall(uint64_t kind, int index) const;
  // Of the load that runs.
  OnProgress Progress() const;
  absl::StatusOr<ScrapedMetrics> Scrape() const;
  absl::StatusOr<nlohmann::json> AskAll(int documents, int questions, int samples, int round);
  absl::StatusOr<nlohmann::json> ClosedLoop(int clients, uint64_t kind,
                                            const std::vector<GenerationMode>& modes);

  ServingTarget* const target_;
  const WorkloadOptions options_;
  std::string progress_;  // what runs
  nlohmann::json report_ = nlohmann::json::array();
};

}  // namespace photon
