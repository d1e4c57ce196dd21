#include "bench/serving_workloads.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/serving_metrics.h"

namespace photon {
namespace {

// Clients of the workloads that ask for a full engine.
constexpr int kManyClients = 64;

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

// "12.3", or a dash where the metric is out of reach.
std::string Cell(const nlohmann::json& metrics, const std::string& key, int decimals) {
  if (!metrics.contains(key)) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), "%.*f", decimals, metrics.at(key).get<double>());
  return text;
}

// From when all sequences have their first token.
double DecodeTokensPerSecond(const LoadRecord& record) {
  TimePoint flowing = record.begin;
  for (const CallRecord& call : record.calls) {
    for (const SequenceRecord& sequence : call.sequences) {
      flowing = std::max(flowing, sequence.arrivals.front().time);
    }
  }
  int64_t tokens = 0;
  for (const CallRecord& call : record.calls) {
    for (const SequenceRecord& sequence : call.sequences) {
      for (const Arrival& arrival : sequence.arrivals) {
        if (arrival.time > flowing) tokens += arrival.tokens;
      }
    }
  }
  const double seconds = std::chrono::duration<double>(record.end - flowing).count();
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

}  // namespace

Workloads::Workloads(ServingTarget* target, const WorkloadOptions& options)
    : target_(target), options_(options) {}

std::vector<std::string> Workloads::Names() {
  return {"throughput", "together", "open-loop", "overhead", "questions",
          "mix",        "samples",  "modes",     "memory",   "arrival"};
}

absl::Status Workloads::Run(const std::string& name) {
  if (name == "throughput") return RunThroughput();
  if (name == "together") return RunTogetherEach();
  if (name == "open-loop") return RunOpenLoops();
  if (name == "overhead") return RunOverhead();
  if (name == "questions") return RunQuestions();
  if (name == "mix") return RunMix();
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

ServingCall Workloads::LoadCall(uint64_t kind, int index) const {
  const uint64_t i = static_cast<uint64_t>(index);
  CallLengths lengths;
  if (const LengthMix* mix = FindLengthMix(options_.mix)) {
    std::seed_seq seed{options_.seed, kind, i};
    std::mt19937_64 random(seed);
    lengths = DrawLengths(*mix, target_->facts().max_tokens, random);
  } else {
    lengths = {DrawLength(kind, 2 * i, options_.prompt_tokens),
               DrawLength(kind, 2 * i + 1, options_.output_tokens)};
  }
  return {.prompts = {Text(kind, i, lengths.prompt_tokens)},
          .max_tokens = lengths.output_tokens,
          .mode = options_.mode,
          .temperature = options_.temperature,
          .seed = i};
}

OnProgress Workloads::Progress() const {
  return [this](double share) { ShowProgress(progress_, share); };
}

absl::StatusOr<ScrapedMetrics> Workloads::Scrape() const {
  if (options_.metrics_address.empty()) return ScrapedMetrics();
  return ScrapeMetrics(options_.metrics_address);
}

absl::StatusOr<nlohmann::json> Workloads::ClosedLoop(int clients, uint64_t kind,
                                                     const std::vector<GenerationMode>& modes) {
  absl::StatusOr<LoadRecord> record = RunClosedLoop(
      *target_, clients, Seconds(options_.warm_up_seconds), Seconds(options_.seconds),
      [&](int index) {
        ServingCall call = LoadCall(kind, index);
        call.mode = modes[index % modes.size()];
        // Settings differ within a step, too.
        if (modes.size() > 1 && index % 2 == 1) call.temperature = 0;
        return call;
      },
      Progress());
  if (!record.ok()) return record.status();
  return ServingMetrics(*record, target_->facts(), options_.level);
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

absl::Status Workloads::RunTogetherEach() {
  const int prompt = options_.prompt_tokens, output = options_.output_tokens;
  if (absl::Status status = CheckContext("together", prompt + output); !status.ok()) return status;
  std::vector<Variant> variants;
  for (const int streams : options_.clients) {
    variants.push_back(
        {absl::StrCat(streams, streams == 1 ? " stream" : " streams"),
         [this, streams, prompt, output](int round) -> absl::StatusOr<nlohmann::json> {
           const uint64_t kind = 10'000'000 + 1000 * streams + round;
           std::vector<ServingCall> calls;
           for (int i = 0; i < streams; ++i) {
             calls.push_back({.prompts = {Text(kind, i, prompt)},
                              .max_tokens = output,
                              .mode = options_.mode,
                              .temperature = options_.temperature,
                              .seed = static_cast<uint64_t>(i)});
           }
           absl::StatusOr<LoadRecord> record = RunTogether(
               *target_,
               [&]() -> absl::StatusOr<std::vector<ServingCall>> { return std::move(calls); });
           if (!record.ok()) return record.status();
           nlohmann::json metrics = ServingMetrics(*record, target_->facts(), options_.level);
           metrics["decode_tokens_per_second"] = DecodeTokensPerSecond(*record);
           return metrics;
         }});
  }
  return Measure("together", variants).status();
}

absl::Status Workloads::RunOpenLoops() {
  const double seconds = options_.warm_up_seconds + options_.seconds;
  std::vector<Variant> variants;
  for (size_t i = 0; i < options_.rates.size(); ++i) {
    const double rate = options_.rates[i];
    variants.push_back(
        {absl::StrCat(rate, " calls/s"),
         [this, i, rate, seconds](int round) -> absl::StatusOr<nlohmann::json> {
           // Texts of its own, so that no rate finds another's in the cache.
           const uint64_t kind = 11'000'000 + 1000 * i + round;
           std::seed_seq seed{options_.seed, kind};
           std::mt19937_64 random(seed);
           absl::StatusOr<LoadRecord> record = RunOpenLoop(
               *target_, PoissonArrivals(rate, seconds, random), Seconds(options_.warm_up_seconds),
               [this, kind](int index) { return LoadCall(kind, index); }, Progress());
           if (!record.ok()) return record.status();
           return ServingMetrics(*record, target_->facts(), options_.level);
         }});
  }
  return Measure("open-loop", variants).status();
}

absl::Status Workloads::RunOverhead() {
  if (absl::Status status = CheckContext(
          "overhead", 2 * (options_.prompt_tokens + 1) + 2 * (options_.output_tokens + 1));
      !status.ok()) {
    return status;
  }
  std::vector<Variant> variants;
  for (const auto& [streams, alone] : options_.engine_tokens_per_second) {
    variants.push_back(
        {absl::StrCat(streams, streams == 1 ? " stream" : " streams"),
         [this, streams = streams, alone = alone](int round) -> absl::StatusOr<nlohmann::json> {
           auto metrics = ClosedLoop(streams, 12'000'000 + 1000 * streams + round, {options_.mode});
           if (!metrics.ok()) return metrics.status();
           const double speed = metrics->at("tokens_per_second");
           (*metrics)["engine_alone_tokens_per_second"] = alone;
           (*metrics)["share_of_engine_percent"] = 100 * speed / alone;
           return metrics;
         }});
  }
  return Measure("overhead", variants).status();
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

absl::Status Workloads::RunArrivals() {
  const int prompt = options_.document_tokens, output = 16;
  if (absl::Status status = CheckContext("arrival", prompt + output); !status.ok()) return status;
  const int max_tokens = target_->facts().max_tokens;
  std::vector<nlohmann::json> repeats;
  for (int round = 0; round < options_.repeats; ++round) {
    ShowProgress("arrival", static_cast<double>(round) / options_.repeats);
    const uint64_t kind = 8'000'000 + round;
    std::vector<ServingCall> streams;
    for (int i = 0; i < options_.streams; ++i) {
      // As long as the context lets them be: they are cancelled.
      ServingCall stream = LoadCall(kind, i);
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
  ClearProgress();
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
                                                  std::vector<Variant> variants) {
  const std::vector<std::string>& wanted = options_.variants;
  if (!wanted.empty()) {
    std::erase_if(variants, [&](const Variant& variant) {
      return std::find(wanted.begin(), wanted.end(), variant.name) == wanted.end();
    });
  }
  if (variants.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(workload, ": has none of these variants"));
  }
  std::map<std::string, std::vector<nlohmann::json>> repeats;
  std::map<std::string, std::vector<double>> ratios;
  for (int round = 0; round < options_.repeats; ++round) {
    double first = 0;
    for (const Variant& variant : variants) {
      progress_ = absl::StrCat(workload, ": ", variant.name, ", round ", round + 1, " of ",
                               options_.repeats);
      ShowProgress(progress_, 0);
      absl::StatusOr<ScrapedMetrics> scraped = Scrape();
      if (!scraped.ok()) return scraped.status();
      absl::StatusOr<nlohmann::json> metrics = variant.run(round);
      if (!metrics.ok()) {
        return absl::Status(metrics.status().code(),
                            absl::StrCat(workload, ", ", variant.name, ": ",
                                         std::string(metrics.status().message())));
      }
      absl::StatusOr<ScrapedMetrics> scraped_after = Scrape();
      if (!scraped_after.ok()) return scraped_after.status();
      for (const auto& [name, value] : MetricsBetween(*scraped, *scraped_after)) {
        (*metrics)["server_" + name] = value;
      }
      const double speed = metrics->at("tokens_per_second");
      if (&variant == &variants.front()) first = speed;
      ratios[variant.name].push_back(first > 0 ? speed / first : 0);
      repeats[variant.name].push_back(*std::move(metrics));
    }
  }
  ClearProgress();
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
      {"of engine", "share_of_engine_percent", 1},
      {"good %", "good_percent", 1},
      {"ttft p50", "ttft_ms_p50", 1},
      {"p99 ms", "ttft_ms_p99", 1},
      {"queue p99", "queue_ms_p99", 2},
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

std::string Workloads::ReportAsCsv() const {
  std::set<std::string> keys;
  for (const nlohmann::json& workload : report_) {
    if (!workload.contains("variants")) continue;
    for (const nlohmann::json& variant : workload.at("variants")) {
      for (const auto& [key, value] : variant.at("median").items()) keys.insert(key);
    }
  }
  std::string csv = "workload,variant,round";
  for (const std::string& key : keys) csv += "," + key;
  csv += "\n";
  for (const nlohmann::json& workload : report_) {
    if (!workload.contains("variants")) continue;
    for (const nlohmann::json& variant : workload.at("variants")) {
      int round = 0;
      for (const nlohmann::json& metrics : variant.at("repeats")) {
        csv += absl::StrCat(workload.at("workload").get<std::string>(), ",",
                            variant.at("name").get<std::string>(), ",", ++round);
        for (const std::string& key : keys) {
          csv += metrics.contains(key) ? absl::StrCat(",", metrics.at(key).get<double>()) : ",";
        }
        csv += "\n";
      }
    }
  }
  return csv;
}

}  // namespace photon
