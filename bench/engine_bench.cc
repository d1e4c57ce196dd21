// photon-engine-bench: the engine alone, without scheduler or server.
//
// Prefill and decode throughput of a checkpoint, beside the bytes and operations that its shape
// asks for and, on the CPU, the ceilings of the machine measured in the same run. Figures are
// medians over --repeats.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/cpu_ceilings.h"
#include "engine/cpu/cpu_engine.h"
#include "engine/cuda/cuda_plugin.h"
#include "engine/engine.h"
#include "engine/memory_budget.h"
#include "engine/model/checkpoint.h"
#include "engine/model/cost_model.h"

namespace photon {
namespace {

struct Flags {
  std::string model = "models/demo";
  std::string device = "cpu";
  bool use_graphs = true;
  int threads = 1;
  std::string compute = "bf16";
  std::string quantization = "none";
  int context = 256;
  int steps = 8;
  int repeats = 5;
  std::vector<int> batches = {1, 2, 4, 8, 16, 32, 64};
  std::vector<GenerationMode> modes;  // none: all that the checkpoint allows
  std::string kv_memory = "1GiB";     // on the CPU
  std::string json;
};

class IgnoreTokens final : public TokenSink {
 public:
  bool OnTokens(int, std::span<const SampledToken> tokens) override {
    last_ = tokens.back().token;
    return true;
  }
  TokenId last() const { return last_; }

 private:
  TokenId last_ = 0;
};

const char* ModeName(GenerationMode mode) {
  switch (mode) {
    case GenerationMode::kExact:
      return "exact";
    case GenerationMode::kHierGen:
      return "hiergen";
    case GenerationMode::kRecGen:
      return "recgen";
  }
  return "";
}

double SecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class EngineBench {
 public:
  EngineBench(const Flags& flags, const Checkpoint& checkpoint, std::unique_ptr<Engine> engine)
      : flags_(flags), config_(checkpoint.config()), engine_(std::move(engine)) {
    const int element = flags.compute == "bf16" ? 2 : 4;
    element_bytes_ = element;
    const EngineShape& shape = engine_->shape();
    std::printf("model %s: %.1f M parameters, meta-context %d tokens, %.0f KV bytes per token\n",
                flags.model.c_str(), NumParameters(config_) * 1e-6, shape.meta_tokens,
                KvBytesPerToken(config_, element));
    report_ = {
        {"model", flags.model},           {"parameters", NumParameters(config_)},
        {"device", shape.device},         {"quantization", flags.quantization},
        {"context", flags.context},       {"kv_bytes_per_token", KvBytesPerToken(config_, element)},
        {"rows", nlohmann::json::array()}};
    std::printf("device %s", shape.device.c_str());
    if (flags.device == "cpu") {
      bandwidth_ = ReadBandwidth(flags.threads);
      throughput_ = ProductThroughput(flags.threads, BestIsa(), element == 2);
      std::printf("; ceilings: reads %.1f GB/s, products %.0f GFLOP/s", bandwidth_ * 1e-9,
                  throughput_ * 1e-9);
      report_["read_bytes_per_second"] = bandwidth_;
      report_["product_flops"] = throughput_;
    }
    std::printf("\n\n");
    std::printf("%-8s %5s %11s %9s %11s %11s %10s\n", "", "batch", "tok/s", "ms/step", "MFLOP/tok",
                "MB/tok", "ceiling");
  }

  void Prefill() {
    const EngineShape& shape = engine_->shape();
    const int tokens = std::min({shape.max_prefill_tokens, shape.max_context, 1024}) /
                       shape.meta_tokens * shape.meta_tokens;
    std::vector<TokenId> prompt(tokens);
    for (int i = 0; i < tokens; ++i) prompt[i] = (i * 7919 + 3) % shape.vocab_size;
    // One prompt on the CPU; as many as a step takes where one is too few to fill the device.
    const int num_rows =
        flags_.device == "cpu" ? 1 : std::min(shape.max_rows, shape.max_prefill_tokens / tokens);
    std::vector<std::vector<PageId>> pages;
    std::vector<Row> rows;
    for (int r = 0; r < num_rows; ++r) {
      pages.push_back(Pages(r * ((tokens + shape.page_tokens - 1) / shape.page_tokens), tokens));
    }
    for (int r = 0; r < num_rows; ++r) {
      rows.push_back({.input = prompt, .pages = pages[r], .decode = false});
    }
    const double seconds = Time([&] { Step(rows); });
    Report("prefill", num_rows, double{1} * num_rows * tokens / seconds, seconds,
           PrefillCost(config_, element_bytes_));
  }

  void Decode(GenerationMode mode, int batch) {
    const EngineShape& shape = engine_->shape();
    const int meta = shape.meta_tokens, context = flags_.context / meta * meta;
    const int total = context + flags_.steps * meta;
    std::vector<TokenId> prompt(context);
    for (int i = 0; i < context; ++i) prompt[i] = (i * 7919 + 3) % shape.vocab_size;
    std::vector<std::vector<PageId>> pages;
    for (int r = 0; r < batch; ++r) {
      pages.push_back(Pages(r * ((total + shape.page_tokens - 1) / shape.page_tokens), total));
    }
    // What a row has before its first decoded token stays as it is, whatever is decoded after it.
    const int num_to_fill = std::max(batch - num_filled_, 0);
    const auto begin = std::chrono::steady_clock::now();
    for (; num_filled_ < batch; ++num_filled_) Fill(prompt, pages[num_filled_]);
    const double fill_seconds = SecondsSince(begin);
    const double seconds = Time([&] {
      // Each repeat goes over the same positions again.
      for (int step = 0; step < flags_.steps; ++step) {
        std::vector<Row> rows;
        for (int r = 0; r < batch; ++r) {
          rows.push_back({.cached_tokens = context + step * meta,
                          .pages = pages[r],
                          .mode = mode,
                          .sampling = {.temperature = 0}});
        }
        Step(rows);
      }
    });
    Report(ModeName(mode), batch, double{1} * batch * flags_.steps * meta / seconds,
           seconds / flags_.steps, DecodeCost(config_, mode, element_bytes_));
    // Of whole contexts, attention over all that is before included.
    if (num_to_fill > 0 && context > 0) {
      report_["rows"].back()["fill_tokens_per_second"] =
          double{1} * num_to_fill * context / fill_seconds;
    }
  }

  void WriteJson() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    report_["peak_rss_bytes"] = int64_t{usage.ru_maxrss} * 1024;
    if (!flags_.json.empty()) std::ofstream(flags_.json) << report_.dump(2) << "\n";
  }

 private:
  std::vector<PageId> Pages(int first, int tokens) const {
    std::vector<PageId> pages;
    for (int t = 0; t < tokens; t += engine_->shape().page_tokens) {
      pages.push_back(PageId{first + static_cast<int>(pages.size())});
    }
    return pages;
  }

  // Prefills one row, in as many steps as its length takes.
  void Fill(std::span<const TokenId> prompt, std::span<const PageId> pages) {
    const int piece = engine_->shape().max_prefill_tokens / engine_->shape().meta_tokens *
                      engine_->shape().meta_tokens;
    for (size_t done = 0; done < prompt.size(); done += piece) {
      const Row row{.cached_tokens = static_cast<int>(done),
                    .input = prompt.subspan(done, std::min<size_t>(piece, prompt.size() - done)),
                    .pages = pages,
                    .decode = false};
      Step(std::span(&row, 1));
    }
  }

  void Step(std::span<const Row> rows) {
    const absl::Status status = engine_->Step({}, rows, sink_);
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      std::exit(1);
    }
  }

  // Median seconds of `body` after one run to warm up.
  double Time(auto&& body) {
    body();
    std::vector<double> seconds;
    for (int i = 0; i < flags_.repeats; ++i) {
      const auto start = std::chrono::steady_clock::now();
      body();
      seconds.push_back(SecondsSince(start));
    }
    return Median(seconds);
  }

  void Report(const char* name, int batch, double tokens_per_second, double step_seconds,
              const Cost& cost) {
    // A lone sequence reads every weight for itself; many share the reads and are bound by
    // products.
    const bool alone = batch == 1 && std::string(name) != "prefill";
    const double share = alone ? cost.weight_bytes * tokens_per_second / bandwidth_
                               : cost.flops * tokens_per_second / throughput_;
    std::printf("%-8s %5d %11.0f %9.3f %11.2f %11.3f", name, batch, tokens_per_second,
                step_seconds * 1e3, cost.flops * 1e-6, cost.weight_bytes * 1e-6);
    nlohmann::json& row =
        report_["rows"].emplace_back(nlohmann::json{{"phase", name},
                                                    {"batch", batch},
                                                    {"tokens_per_second", tokens_per_second},
                                                    {"step_seconds", step_seconds},
                                                    {"flops_per_token", cost.flops},
                                                    {"weight_bytes_per_token", cost.weight_bytes}});
    if (bandwidth_ > 0) {
      std::printf(" %6.1f %% of %s", share * 100, alone ? "reads" : "products");
      row[alone ? "share_of_read_bandwidth" : "share_of_product_throughput"] = share;
    }
    std::printf("\n");
    std::fflush(stdout);
  }

  Flags flags_;
  ModelConfig config_;
  std::unique_ptr<Engine> engine_;
  IgnoreTokens sink_;
  int num_filled_ = 0;  // rows whose pages hold the context
  int element_bytes_ = 2;
  double bandwidth_ = 0, throughput_ = 0;  // measured on the CPU only
  nlohmann::json report_;
};

absl::StatusOr<std::unique_ptr<Engine>> MakeEngine(const Flags& flags,
                                                   const Checkpoint& checkpoint) {
  const int max_rows = *std::max_element(flags.batches.begin(), flags.batches.end());
  const bool is_bf16 = flags.compute == "bf16";
  if (flags.device == "cuda") {
    using Compute = CudaEngineOptions::Compute;
    const absl::StatusOr<CudaPlugin> plugin = CudaPlugin::Open("");
    if (!plugin.ok()) return plugin.status();
    using Quantization = CudaEngineOptions::Quantization;
    return plugin->CreateEngine(
        checkpoint,
        {.compute = is_bf16 ? Compute::kBF16 : Compute::kF32,
         .quantization = flags.quantization == "fp8" ? Quantization::kFp8 : Quantization::kNone,
         .max_rows = max_rows,
         .use_graphs = flags.use_graphs});
  }
  if (flags.quantization != "none") {
    return absl::InvalidArgumentError("--quantization: fp8 needs --device cuda");
  }
  using Compute = CpuEngineOptions::Compute;
  return CreateCpuEngine(checkpoint, {.compute = is_bf16 ? Compute::kBF16 : Compute::kF32,
                                      .threads = flags.threads,
                                      .kv_memory = *MemoryBudget::Parse(flags.kv_memory),
                                      .max_rows = max_rows});
}

int Run(const Flags& flags) {
  auto checkpoint = Checkpoint::Load(flags.model);
  if (!checkpoint.ok()) {
    std::fprintf(stderr, "%s\n", checkpoint.status().ToString().c_str());
    return 1;
  }
  auto engine = MakeEngine(flags, **checkpoint);
  if (!engine.ok()) {
    std::fprintf(stderr, "%s\n", engine.status().ToString().c_str());
    return 1;
  }
  const std::vector<GenerationMode> modes =
      flags.modes.empty() ? (*engine)->shape().modes : flags.modes;
  EngineBench bench(flags, **checkpoint, *std::move(engine));
  bench.Prefill();
  for (const GenerationMode mode : modes) {
    for (int batch : flags.batches) bench.Decode(mode, batch);
  }
  bench.WriteJson();
  return 0;
}

}  // namespace
}  // namespace photon

int main(int argc, char** argv) {
  photon::Flags flags;
  CLI::App app("Measures an engine alone: prefill and decode, each mode, each batch");
  app.add_option("--model", flags.model, "Checkpoint directory")->capture_default_str();
  app.add_option("--device", flags.device, "What computes")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_flag("!--no-graphs", flags.use_graphs,
               "With cuda: launch every kernel for itself, as profilers like it");
  app.add_option("--threads", flags.threads, "Threads, the calling one included")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  app.add_option("--compute", flags.compute, "Arithmetic")
      ->capture_default_str()
      ->check(CLI::IsMember({"bf16", "fp32"}));
  app.add_option("--quantization", flags.quantization,
                 "With cuda: of weights and inputs of matrix products")
      ->capture_default_str()
      ->check(CLI::IsMember({"none", "fp8"}));
  app.add_option("--context", flags.context, "Tokens before the first decoded one")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--steps", flags.steps, "Meta-contexts decoded per repeat")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  app.add_option("--repeats", flags.repeats, "Repeats; medians are reported")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--batches", flags.batches, "Rows per step")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  using Mode = photon::GenerationMode;
  app.add_option("--modes", flags.modes, "Of generation; all that the checkpoint allows")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Mode>{
          {"exact", Mode::kExact}, {"hiergen", Mode::kHierGen}, {"recgen", Mode::kRecGen}}));
  app.add_option("--kv-memory", flags.kv_memory, "Of the CPU engine's cache: 512MiB, 60%")
      ->capture_default_str()
      ->check([](const std::string& text) {
        return std::string(photon::MemoryBudget::Parse(text).status().message());
      });
  app.add_option("--json", flags.json, "Also write the figures to this file");
  CLI11_PARSE(app, argc, argv);
  return photon::Run(flags);
}
