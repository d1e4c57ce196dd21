// photon-serving-bench: many requests at a time, through the scheduler or a whole server.
//
//   photon-serving-bench                  a server in this process, over a socket of this machine
//   photon-serving-bench --in-process     the scheduler alone, without text and network
//   photon-serving-bench --server ADDR    a photon-server that runs; its steps stay unknown
//
// Closed-loop clients, open loops, the whole path against the engine alone, questions over one
// document with and without sharing, documents x questions x samples, samples, modes mixed in a
// step, memory by length, and a long prompt among streams; see serving_workloads.h.
#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "bench/engine_alone.h"
#include "bench/grpc_target.h"
#include "bench/idle_engine.h"
#include "bench/in_process_target.h"
#include "bench/serving_target.h"
#include "bench/serving_workloads.h"
#include "engine/cpu/cpu_engine.h"
#include "engine/cuda/cuda_plugin.h"
#include "engine/memory_budget.h"
#include "engine/model/checkpoint.h"
#include "engine/model/tokenizer.h"
#include "server/server.h"

namespace photon {
namespace {

struct Flags {
  bool in_process = false;
  std::string server;  // empty: one in this process
  int connections = 4;
  std::string model = "models/demo";
  std::string device = "cpu";
  CpuEngineOptions engine;
  std::vector<std::string> workloads = {"throughput", "samples", "modes"};
  WorkloadOptions workload;
  std::string json;
  std::string csv;
};

int64_t PeakRssBytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

bool WriteFile(const std::string& path, const std::string& text) {
  if (path.empty()) return true;
  std::ofstream file(path);
  file << text;
  if (file.flush()) return true;
  std::fprintf(stderr, "%s: cannot be written\n", path.c_str());
  return false;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 1;
}

int RunWorkloads(const Flags& flags, const std::string& command, ServingTarget& target) {
  const ServingFacts& facts = target.facts();
  std::printf("device %s; context %d tokens; %d pages of %d tokens and %lld bytes\n",
              facts.device.c_str(), facts.max_tokens, facts.num_pages, facts.page_tokens,
              static_cast<long long>(facts.page_bytes));
  Workloads workloads(&target, flags.workload);
  for (const std::string& name : flags.workloads) {
    if (absl::Status status = workloads.Run(name); !status.ok()) return Fail(status);
  }
  const nlohmann::json report = {{"command", command},
                                 {"device", facts.device},
                                 {"context", facts.max_tokens},
                                 {"page_tokens", facts.page_tokens},
                                 {"page_bytes", facts.page_bytes},
                                 {"num_pages", facts.num_pages},
                                 {"peak_rss_bytes", PeakRssBytes()},
                                 {"workloads", workloads.report()}};
  return WriteFile(flags.json, report.dump(1) + "\n") &&
                 WriteFile(flags.csv, workloads.ReportAsCsv())
             ? 0
             : 1;
}

absl::StatusOr<std::unique_ptr<Engine>> MakeEngine(const Flags& flags,
                                                   const Checkpoint& checkpoint) {
  if (flags.device == "cpu") return CreateCpuEngine(checkpoint, flags.engine);
  if (flags.device == "cuda") {
    using Compute = CudaEngineOptions::Compute;
    const absl::StatusOr<CudaPlugin> plugin = CudaPlugin::Open("");
    if (!plugin.ok()) return plugin.status();
    const bool is_bf16 = flags.engine.compute == CpuEngineOptions::Compute::kBF16;
    return plugin->CreateEngine(checkpoint,
                                {.compute = is_bf16 ? Compute::kBF16 : Compute::kF32,
                                 .kv_memory = flags.engine.kv_memory,
                                 .page_tokens = flags.engine.page_tokens,
                                 .max_rows = flags.engine.max_rows,
                                 .max_prefill_tokens = flags.engine.max_prefill_tokens});
  }
  const ModelConfig& config = checkpoint.config();
  // Pages enough for every row at the full context.
  const int pages_per_row = (config.max_context + 255) / 256;
  return std::make_unique<IdleEngine>(IdleEngine::Shape(config.vocab_size, config.max_context,
                                                        flags.engine.max_rows,
                                                        flags.engine.max_rows * pages_per_row));
}

bool Runs(const Flags& flags, const std::string& workload) {
  return std::find(flags.workloads.begin(), flags.workloads.end(), workload) !=
         flags.workloads.end();
}

int Run(Flags flags, const std::string& command) {
  if (!flags.server.empty()) {
    if (Runs(flags, "overhead")) {
      return Fail(absl::InvalidArgumentError("overhead: needs the engine in this process"));
    }
    auto target = GrpcTarget::Connect(flags.server, flags.connections, nullptr);
    if (!target.ok()) return Fail(target.status());
    return RunWorkloads(flags, command, **target);
  }
  auto checkpoint = Checkpoint::Load(flags.model);
  if (!checkpoint.ok()) return Fail(checkpoint.status());
  auto engine = MakeEngine(flags, **checkpoint);
  if (!engine.ok()) return Fail(engine.status());
  if (Runs(flags, "overhead")) {
    const WorkloadOptions& workload = flags.workload;
    for (const int streams : workload.clients) {
      const absl::StatusOr<double> alone =
          EngineTokensPerSecond(**engine, std::min(streams, flags.engine.max_rows),
                                workload.prompt_tokens, workload.output_tokens, workload.repeats);
      if (!alone.ok()) return Fail(alone.status());
      flags.workload.engine_tokens_per_second[streams] = *alone;
    }
  }
  SchedulerOptions scheduler;
  const int most = *std::max_element(flags.workload.clients.begin(), flags.workload.clients.end());
  scheduler.max_queue = std::max(scheduler.max_queue, 2 * most);
  if (flags.in_process) {
    auto target = InProcessTarget::Create((*checkpoint)->config(), engine->get(), scheduler);
    if (!target.ok()) return Fail(target.status());
    return RunWorkloads(flags, command, **target);
  }
  auto tokenizer = Tokenizer::Load((*checkpoint)->tokenizer_path());
  if (!tokenizer.ok()) return Fail(tokenizer.status());
  LoadedModel model;
  model.facts.name = flags.model;
  model.facts.config = (*checkpoint)->config();
  model.facts.tokenizer = *std::move(tokenizer);
  model.engines.emplace_back(*std::move(engine));
  // A line of the log per call would be a cost of the measurement.
  spdlog::set_level(spdlog::level::warn);
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  auto server = Server::Start(options, scheduler, std::move(model));
  if (!server.ok()) return Fail(server.status());
  if (absl::Status ready = (*server)->AwaitReady(); !ready.ok()) return Fail(ready);
  auto target = GrpcTarget::Connect((*server)->address(), flags.connections,
                                    [&] { return (*server)->stats(); });
  if (!target.ok()) return Fail(target.status());
  return RunWorkloads(flags, command, **target);
}

}  // namespace
}  // namespace photon

int main(int argc, char** argv) {
  using Compute = photon::CpuEngineOptions::Compute;
  using Mode = photon::GenerationMode;
  photon::Flags flags;
  photon::WorkloadOptions& workload = flags.workload;
  std::string kv_memory = "1GiB";
  CLI::App app("Measures the scheduler over an engine, or a server: many requests at a time");
  const auto add = [&](const char* name, auto& value, const char* description) {
    return app.add_option(name, value, description)->capture_default_str();
  };
  const CLI::Range count(1, 1 << 20);
  app.add_flag("--in-process", flags.in_process, "Drive the scheduler alone");
  app.add_option("--server", flags.server, "Drive the photon-server at this address")
      ->excludes("--in-process");
  add("--connections", flags.connections, "Calls take turns on so many")->check(count);
  app.add_option("--metrics", workload.metrics_address,
                 "host:port of the server's HTTP port: its /metrics is read around each load")
      ->needs("--server");
  add("--model", flags.model, "Checkpoint directory");
  add("--device", flags.device, "What computes; none: nothing, for the cost of all the rest")
      ->check(CLI::IsMember({"cpu", "cuda", "none"}));
  add("--threads", flags.engine.threads, "Engine threads; 0: one per processor");
  add("--compute", flags.engine.compute, "Arithmetic: bf16 or f32")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, Compute>{{"bf16", Compute::kBF16}, {"f32", Compute::kF32}}))
      ->default_str("bf16");
  add("--kv-memory", kv_memory, "Memory of the latent cache: 512MiB, 60%")
      ->check([](const std::string& text) {
        return std::string(photon::MemoryBudget::Parse(text).status().message());
      });
  add("--page-tokens", flags.engine.page_tokens, "Tokens of a cache page")->check(count);
  add("--max-rows", flags.engine.max_rows, "Sequences that run at a time")->check(count);
  add("--max-prefill-tokens", flags.engine.max_prefill_tokens,
      "Prompt tokens that one step takes in")
      ->check(count);

  add("--workloads", flags.workloads, "What to run")
      ->check(CLI::IsMember(photon::Workloads::Names()));
  app.add_option("--variants", workload.variants, "Of these, by the names in the tables; or all");
  add("--repeats", workload.repeats, "Rounds; medians are reported")->check(CLI::Range(1, 1000));
  add("--seconds", workload.seconds, "Of a closed loop's window")->check(CLI::PositiveNumber);
  add("--warm-up", workload.warm_up_seconds, "Seconds before it")->check(CLI::NonNegativeNumber);
  add("--seed", workload.seed, "Of the texts and lengths");
  add("--temperature", workload.temperature, "Of the sampling; 0 is greedy")
      ->check(CLI::NonNegativeNumber);
  add("--mode", workload.mode, "Of the generation, where it is not the workload's")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Mode>{
          {"exact", Mode::kExact}, {"hiergen", Mode::kHierGen}, {"recgen", Mode::kRecGen}}))
      ->default_str("exact");
  add("--clients", workload.clients, "Closed loops; the first is what ratios are to")->check(count);
  add("--prompt-tokens", workload.prompt_tokens, "Of a closed loop's call, on average")
      ->check(count);
  add("--output-tokens", workload.output_tokens, "Likewise, and of samples")->check(count);
  add("--mix", workload.mix, "Draw the lengths of loops as of this: sharegpt or documents")
      ->check([](const std::string& name) {
        return photon::FindLengthMix(name) != nullptr ? "" : "expected sharegpt or documents";
      });
  add("--rates", workload.rates, "Of open loops, calls a second")->check(CLI::PositiveNumber);
  add("--good-ttft-ms", workload.level.ttft_ms, "A good call's first token comes within this")
      ->check(CLI::PositiveNumber);
  add("--good-token-ms", workload.level.token_ms, "... and its others within this on average")
      ->check(CLI::PositiveNumber);
  add("--mix-documents", workload.mix_documents, "Documents, of the mix")->check(count);
  add("--mix-questions", workload.mix_questions, "Questions of each")->check(count);
  add("--mix-samples", workload.mix_samples, "Samples of each question")->check(count);
  add("--questions", workload.questions, "Over one document")->check(count);
  add("--document-tokens", workload.document_tokens, "Of that, and of the prompt that arrives")
      ->check(count);
  add("--answer-tokens", workload.answer_tokens, "Of each question's answer")->check(count);
  add("--samples", workload.samples, "Of one prompt")->check(CLI::Range(1, 1024));
  add("--sample-prompt-tokens", workload.sample_prompt_tokens, "Of that prompt")->check(count);
  add("--lengths", workload.lengths, "Of the sequences whose memory is measured")->check(count);
  add("--streams", workload.streams, "Among which a long prompt arrives")->check(count);
  app.add_option("--json", flags.json, "Also write the figures to this file");
  app.add_option("--csv", flags.csv, "Likewise, a line for each round");
  CLI11_PARSE(app, argc, argv);

  flags.engine.kv_memory = *photon::MemoryBudget::Parse(kv_memory);
  workload.element_bytes = flags.engine.compute == Compute::kBF16 ? 2 : 4;
  std::string command = "photon-serving-bench";
  for (int i = 1; i < argc; ++i) command += std::string(" ") + argv[i];
  return photon::Run(flags, command);
}
