#include "bench/serving_workloads.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/serving_metrics.h"

namespace photon {
namespace {

// Clients of the workloads that ask for a full engine.
constexpr int kManyClients = 64;
constexpr int kSharedSamples = 64;

Duration Seconds(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

std::string ModeName(GenerationMode mode) {
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

void PrintProgress(const std::string& text) {
  if (isatty(STDERR_FILENO) == 0) return;
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
}

// "12.3", or a dash where the metric is out of reach.
std::string Cell(const nlohmann::json& metrics, const std::string& key, int decimals) {
  if (!metrics.contains(key)) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), "%.*f", decimals, metrics.at(key).get<double>());
  return text;
}

}  // namespace

Workloads::Workloads(ServingTarget* target, const WorkloadOptions& options)
    : target_(target), options_(options) {}

std::vector<std::string> Workloads::Names() {
  return {"throughput", "questions", "samples", "modes", "memory", "arrival"};
}

absl::Status Workloads::Run(const std::string& name) {
  if (name == "throughput") return RunThroughput();
  if (name == "questions") return RunQuestions();
  if (name == "samples") return RunSamples();
  if (name == "modes") return RunModes();
  if (name == "memory") return RunMemory();
  if (name == "arrival") return RunArrivals();
  return absl::InvalidArgumentError(absl::StrCat("no such workload: ", name));
}

absl::Status Workloads::CheckContext(const std::string& what, int tokens) const {
  if (tokens <= target_->facts().max_tokens) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(what, " takes a context of ", tokens, " tokens; the checkpoint has ",
                   target_->facts().max_tokens, " (max_context in its config.json)"));
}

std::vector<TokenId> Workloads::Text(uint64_t kind, uint64_t index, int tokens) const {
  std::seed_seq seed{options_.seed, kind, index};
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<TokenId> token(0, target_->facts().vocab_size - 1);
  std::vector<TokenId> text(tokens);
  for (TokenId& id : text) id = token(random);
  return text;
}

int Workloads::DrawLength(uint64_t kind, uint64_t index, int mean) const {
  std::seed_seq seed{options_.seed, kind, index, static_cast<uint64_t>(mean)};
  std::mt19937_64 random(seed);
  return std::uniform_int_distribution<int>(std::max(1, mean / 2), mean + mean / 2)(random);
}

ServingCall Workloads::ClosedLoopCall(uint64_t kind, int index) const {
  const uint64_t i = static_cast<uint64_t>(index);
  return {.prompts = {Text(kind, i, DrawLength(kind, 2 * i, options_.prompt_tokens))},
          .max_tokens = DrawLength(kind, 2 * i + 1, options_.output_tokens),
          .mode = options_.mode,
          .temperature = options_.temperature,
          .seed = i};
}

absl::StatusOr<nlohmann::json> Workloads::ClosedLoop(int clients, uint64_t kind,
                                                     const std::vector<GenerationMode>& modes) {
  absl::StatusOr<LoadRecord> record =
      RunClosedLoop(*target_, clients, Seconds(options_.warm_up_seconds), Seconds(options_.seconds),
                    [&](int index) {
                      ServingCall call = ClosedLoopCall(kind, index);
                      call.mode = modes[index % modes.size()];
                      // Settings differ within a step, too.
                      if (modes.size() > 1 && index % 2 == 1) call.temperature = 0;
                      return call;
                    });
  if (!record.ok()) return record.status();
  return ServingMetrics(*record, target_->facts());
}

absl::Status Workloads::RunThroughput() {
  if (absl::Status status = CheckContext(
          "throughput", 2 * (options_.prompt_tokens + 1) + 2 * (options_.output_tokens + 1));
      !status.ok()) {
    return status;
  }
  std::vector<Variant> variants;
  for (const int clients : options_.clients) {
    variants.push_back(
        {clients == 1 ? "serial" : absl::StrCat(clients, " clients"), [this, clients](int round) {
           const uint64_t kind = 1000 * clients + round;
           return ClosedLoop(clients, kind, {options_.mode});
         }});
  }
  return Measure("throughput", variants).status();
}

absl::Status Workloads::RunModes() {
  const std::vector<GenerationMode>& modes = target_->facts().modes;
  std::vector<Variant> variants;
  for (const GenerationMode mode : modes) {
    variants.push_back({ModeName(mode), [this, mode](int round) {
                          const int kind = 2'000'000 + 1000 * static_cast<int>(mode) + round;
                          return ClosedLoop(kManyClients, kind, {mode});
                        }});
  }
  variants.push_back({"mixed", [this, &modes](int round) {
                        return ClosedLoop(kManyClients, 2'100'000 + round, modes);
                      }});
  return Measure("modes", variants).status();
}

absl::Status Workloads::RunQuestions() {
  if (absl::Status status =
          CheckContext("questions", options_.document_tokens + options_.question_tokens_max +
                                        options_.answer_tokens);
      !status.ok()) {
    return status;
  }
  const auto document = [this](int variant, int round) {
    return Text(3'000'000 + variant, round, options_.document_tokens);
  };
  const auto question = [this](int variant, int round, int index) {
    const uint64_t kind = 4'000'000 + 1000 * variant + round;
    std::seed_seq seed{options_.seed, kind, static_cast<uint64_t>(index)};
    std::mt19937_64 random(seed);
    std::uniform_int_distribution<int> length(options_.question_tokens_min,
                                              options_.question_tokens_max);
    return Text(kind, index, length(random));
  };
  const auto call = [this](std::vector<std::vector<TokenId>> prompts) {
    return ServingCall{.prompts = std::move(prompts),
                       .max_tokens = options_.answer_tokens,
                       .mode = options_.mode,
                       .temperature = options_.temperature,
                       .seed = 1};
  };
  const auto questions = [this, question](int variant, int round) {
    std::vector<std::vector<TokenId>> all;
    for (int q = 0; q < options_.questions; ++q) all.push_back(question(variant, round, q));
    return all;
  };

  // Each question in a call of its own, the document before it. Where nothing is to be shared, the
  // document's first token is another for each question, so that no prompt begins like another.
  const auto calls = [=, this](int variant, int round, bool shares) {
    std::vector<ServingCall> all;
    for (int q = 0; q < options_.questions; ++q) {
      std::vector<TokenId> prompt = document(variant, round);
      if (!shares) prompt[0] = q % target_->facts().vocab_size;
      const std::vector<TokenId> tail = question(variant, round, q);
      prompt.insert(prompt.end(), tail.begin(), tail.end());
      all.push_back(call({std::move(prompt)}));
    }
    return all;
  };
  const auto together = [this](auto prepare) -> absl::StatusOr<nlohmann::json> {
    absl::StatusOr<LoadRecord> record = RunTogether(*target_, prepare);
    if (!record.ok()) return record.status();
    return ServingMetrics(*record, target_->facts());
  };
  const auto prepared = [=](int variant, bool shares) {
    return [=](int round) {
      return together([all = calls(variant, round, shares)]() mutable
                          -> absl::StatusOr<std::vector<ServingCall>> { return std::move(all); });
    };
  };
  // The document is created, and the questions asked of it in one call. The window begins before
  // the first or between the two.
  const auto asked = [=, this](int variant, bool counts_creation) {
    return [=, this](int round) -> absl::StatusOr<nlohmann::json> {
      const std::vector<TokenId> text = document(variant, round);
      absl::StatusOr<std::string> id;
      if (!counts_creation) {
        id = target_->CreateDocument(text);
        if (!id.ok()) return id.status();
      }
      ServingCall ask = call(questions(variant, round));
      absl::StatusOr<nlohmann::json> metrics =
          together([&]() -> absl::StatusOr<std::vector<ServingCall>> {
            if (counts_creation) id = target_->CreateDocument(text);
            if (!id.ok()) return id.status();
            ask.document = *id;
            return std::vector<ServingCall>{std::move(ask)};
          });
      if (!metrics.ok()) return metrics.status();
      if (absl::Status status = target_->DeleteDocument(*id); !status.ok()) return status;
      return metrics;
    };
  };
  return Measure("questions", {{"nothing shared", prepared(0, false)},
                               {"prefix found by the index", prepared(1, true)},
                               {"document created and asked", asked(2, true)},
                               {"document asked", asked(3, false)}})
      .status();
}

absl::Status Workloads::RunSamples() {
  if (absl::Status status =
          CheckContext("samples", options_.sample_prompt_tokens + options_.output_tokens);
      !status.ok()) {
    return status;
  }
  const auto run = [this](std::vector<ServingCall> calls) -> absl::StatusOr<nlohmann::json> {
    absl::StatusOr<LoadRecord> record = RunTogether(
        *target_, [&]() -> absl::StatusOr<std::vector<ServingCall>> { return std::move(calls); });
    if (!record.ok()) return record.status();
    return ServingMetrics(*record, target_->facts());
  };
  const auto call = [this](uint64_t kind, int index, int samples) {
    return ServingCall{.prompts = {Text(kind, index, options_.sample_prompt_tokens)},
                       .samples = samples,
                       .max_tokens = options_.output_tokens,
                       .mode = options_.mode,
                       .temperature = options_.temperature,
                       .seed = 1};
  };
  std::vector<Variant> variants;
  const int most = *std::max_element(options_.samples.begin(), options_.samples.end());
  variants.push_back({absl::StrCat(most, " prompts"), [=](int round) {
                        std::vector<ServingCall> calls;
                        for (int i = 0; i < most; ++i) {
                          calls.push_back(call(5'000'000 + round, i, 1));
                        }
                        return run(std::move(calls));
                      }});
  for (const int samples : options_.samples) {
    variants.push_back(
        {absl::StrCat(samples, samples == 1 ? " sample" : " samples"),
         [=](int round) { return run({call(6'000'000 + 1000 * samples + round, 0, samples)}); }});
  }
  return Measure("samples", variants).status();
}

absl::Status Workloads::RunMemory() {
  const ServingFacts& facts = target_->facts();
  if (!target_->stats().has_value()) {
    return absl::FailedPreconditionError("memory: needs the scheduler in this process");
  }
  // Every sequence writes its last page throughout its output.
  const int output = facts.page_tokens;
  std::printf("\nmemory, bytes per sequence: peak of pages in use, by sequences\n");
  std::printf("%8s %12s %12s %14s %14s %8s %8s\n", "tokens", "latents", "in pages",
              absl::StrCat("of ", kSharedSamples, " samples").c_str(), "transformer", "ratio",
              "shared");
  nlohmann::json rows = nlohmann::json::array();
  for (const int length : options_.lengths) {
    if (absl::Status status = CheckContext("memory", length); !status.ok()) return status;
    if (length <= output || length % facts.page_tokens != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("memory: lengths are multiples of a page's ", facts.page_tokens,
                       " tokens and more than one, got ", length));
    }
    const auto peak_bytes = [&](int samples) -> absl::StatusOr<double> {
      PrintProgress(absl::StrCat("memory: ", samples, " of ", length, " tokens"));
      ServingCall call{.prompts = {Text(7'000'000 + length, samples, length - output)},
                       .samples = samples,
                       .max_tokens = output,
                       .mode = options_.mode};
      absl::StatusOr<LoadRecord> record =
          RunTogether(*target_, [&]() -> absl::StatusOr<std::vector<ServingCall>> {
            return std::vector<ServingCall>{std::move(call)};
          });
      if (!record.ok()) return record.status();
      return static_cast<double>(record->peak_pages_in_use * facts.page_bytes) / samples;
    };
    const absl::StatusOr<double> alone = peak_bytes(1);
    if (!alone.ok()) return alone.status();
    const absl::StatusOr<double> shared = peak_bytes(kSharedSamples);
    if (!shared.ok()) return shared.status();
    const double latents = facts.kv_width_that_grows_per_token * options_.element_bytes * length;
    const double transformer =
        static_cast<double>(facts.kv_width_of_all_layers) * options_.element_bytes * length;
    PrintProgress("");
    std::printf("%8d %12.0f %12.0f %14.0f %14.0f %8.1f %8.1f\n", length, latents, *alone, *shared,
                transformer, transformer / *alone, transformer / *shared);
    std::fflush(stdout);
    rows.push_back({{"tokens", length},
                    {"latent_bytes", latents},
                    {"page_bytes_per_sequence", *alone},
                    {"page_bytes_per_sample", *shared},
                    {"samples", kSharedSamples},
                    {"transformer_bytes", transformer}});
  }
  report_.push_back({{"workload", "memory"}, {"rows", std::move(rows)}});
  return absl::OkStatus();
}

absl::Status Workloads::RunArrivals() {
  const int prompt = options_.document_tokens, output = 16;
  if (absl::Status status = CheckContext("arrival", prompt + output); !status.ok()) return status;
  const int max_tokens = target_->facts().max_tokens;
  std::vector<nlohmann::json> repeats;
  for (int round = 0; round < options_.repeats; ++round) {
    PrintProgress(absl::StrCat("arrival: round ", round + 1, " of ", options_.repeats));
    const uint64_t kind = 8'000'000 + round;
    std::vector<ServingCall> streams;
    for (int i = 0; i < options_.streams; ++i) {
      // As long as the context lets them be: they are cancelled.
      ServingCall stream = ClosedLoopCall(kind, i);
      stream.max_tokens = max_tokens - static_cast<int>(stream.prompts[0].size());
      streams.push_back(std::move(stream));
    }
    ServingCall call{.prompts = {Text(kind, 1'000'000, prompt)},
                     .max_tokens = output,
                     .mode = options_.mode,
                     .temperature = options_.temperature};
    absl::StatusOr<LoadRecord> record =
        RunArrival(*target_, std::move(streams), std::move(call), Seconds(options_.seconds / 2));
    if (!record.ok()) return record.status();
    repeats.push_back(ArrivalMetrics(*record));
  }
  PrintProgress("");
  const nlohmann::json median = MedianOf(repeats);
  std::printf("\narrival: a prompt of %d tokens among %d streams; its first token after %.1f ms\n",
              prompt, options_.streams, median.at("arrival_ttft_ms").get<double>());
  std::printf("%-8s %10s %12s %8s %8s %8s\n", "", "tok/s", "gap ms p50", "p95", "p99", "max");
  for (const std::string phase : {"before", "during", "after"}) {
    std::printf("%-8s %10s %12s %8s %8s %8s\n", phase.c_str(),
                Cell(median, phase + "_tokens_per_second", 0).c_str(),
                Cell(median, phase + "_gap_ms_p50", 2).c_str(),
                Cell(median, phase + "_gap_ms_p95", 1).c_str(),
                Cell(median, phase + "_gap_ms_p99", 1).c_str(),
                Cell(median, phase + "_gap_ms_max", 1).c_str());
  }
  std::fflush(stdout);
  report_.push_back({{"workload", "arrival"},
                     {"prompt_tokens", prompt},
                     {"streams", options_.streams},
                     {"median", median},
                     {"repeats", repeats}});
  return absl::OkStatus();
}

absl::StatusOr<nlohmann::json> Workloads::Measure(const std::string& workload,
                                                  const std::vector<Variant>& variants) {
  std::map<std::string, std::vector<nlohmann::json>> repeats;
  std::map<std::string, std::vector<double>> ratios;
  for (int round = 0; round < options_.repeats; ++round) {
    double first = 0;
    for (const Variant& variant : variants) {
      PrintProgress(absl::StrCat(workload, ": ", variant.name, ", round ", round + 1, " of ",
                                 options_.repeats));
      absl::StatusOr<nlohmann::json> metrics = variant.run(round);
      if (!metrics.ok()) {
        return absl::Status(metrics.status().code(),
                            absl::StrCat(workload, ", ", variant.name, ": ",
                                         std::string(metrics.status().message())));
      }
      const double speed = metrics->at("tokens_per_second");
      if (&variant == &variants.front()) first = speed;
      ratios[variant.name].push_back(first > 0 ? speed / first : 0);
      repeats[variant.name].push_back(*std::move(metrics));
    }
  }
  PrintProgress("");
  nlohmann::json measured = {{"workload", workload}, {"variants", nlohmann::json::array()}};
  for (const Variant& variant : variants) {
    measured["variants"].push_back({{"name", variant.name},
                                    {"ratio", Median(ratios[variant.name])},
                                    {"ratios", ratios[variant.name]},
                                    {"median", MedianOf(repeats[variant.name])},
                                    {"repeats", repeats[variant.name]}});
  }
  PrintTable(measured);
  report_.push_back(measured);
  return measured;
}

void Workloads::PrintTable(const nlohmann::json& measured) const {
  struct Column {
    const char* title;
    const char* key;
    int decimals;
  };
  static constexpr Column kColumns[] = {
      {"ttft p50", "ttft_ms_p50", 1},
      {"p99 ms", "ttft_ms_p99", 1},
      {"gap p50", "gap_ms_p50", 2},
      {"p99", "gap_ms_p99", 1},
      {"max ms", "gap_ms_max", 1},
      {"cached %", "cached_percent", 1},
      {"steps", "steps", 0},
      {"rows/step", "rows_per_step", 1},
      {"ms/step", "step_ms", 2},
      {"host us", "host_us_per_step", 0},
      {"host %", "host_percent", 2},
      {"wasted %", "wasted_percent", 1},
      {"pages", "peak_pages_in_use", 0},
  };
  std::printf("\n%-28s %9s %7s", measured.at("workload").get<std::string>().c_str(), "tok/s",
              "ratio");
  for (const Column& column : kColumns) std::printf(" %9s", column.title);
  std::printf("\n");
  for (const nlohmann::json& variant : measured.at("variants")) {
    const nlohmann::json& median = variant.at("median");
    std::printf("%-28s %9s %7s", variant.at("name").get<std::string>().c_str(),
                Cell(median, "tokens_per_second", 0).c_str(), Cell(variant, "ratio", 2).c_str());
    for (const Column& column : kColumns) {
      std::printf(" %9s", Cell(median, column.key, column.decimals).c_str());
    }
    std::printf("\n");
  }
  std::fflush(stdout);
}

}  // namespace photon
