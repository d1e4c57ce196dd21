#include "client/plan_command.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "client/plan.h"
#include "client/plan_text.h"
#include "engine/memory_budget.h"
#include "engine/model/checkpoint.h"

namespace photon {
namespace {

struct Flags {
  std::string model;
  std::string card;
  std::string memory, bandwidth, flops, kv_memory;
  std::string measured;
  std::string output = "text";
  double cpus = 0;  // 0: 2, or 4 beside a GPU
  PlanOptions options;
};

// "3.35T" is 3.35e12: units of 1000. 0 where `text` is none.
double ParseRate(std::string_view text) {
  double number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || !std::isfinite(number) || number <= 0) return 0;
  if (rest == end) return number;
  const size_t power = std::string_view("KMGTP").find(*rest);
  if (rest + 1 != end || power == std::string_view::npos) return 0;
  return number * std::pow(1000.0, static_cast<double>(power + 1));
}

std::string CheckRate(const std::string& text) {
  return ParseRate(text) > 0 ? "" : "expected a number above 0, as in 3.35T, got " + text;
}

std::string CheckBytes(const std::string& text) {
  const auto budget = MemoryBudget::Parse(text);
  if (!budget.ok()) return std::string(budget.status().message());
  return budget->is_share() ? "expected bytes, as in 80GiB, got " + text : "";
}

std::string CheckBudget(const std::string& text) {
  return std::string(MemoryBudget::Parse(text).status().message());
}

Machine MachineOf(const Flags& flags) {
  Machine machine{.name = "cpu"};
  for (const Machine& card : KnownCards()) {
    if (card.name == flags.card) machine = card;
  }
  if (!flags.memory.empty()) machine.memory_bytes = MemoryBudget::Parse(flags.memory)->Resolve(0);
  if (!flags.bandwidth.empty()) machine.bytes_per_second = ParseRate(flags.bandwidth);
  if (!flags.flops.empty()) machine.flops = ParseRate(flags.flops);
  return machine;
}

int Run(const Flags& flags, const std::string& command_line, const Terminal& terminal) {
  PlanOptions options = flags.options;
  auto config = LoadModelConfig(flags.model);
  if (!config.ok()) return Fail(config.status(), terminal);
  options.config = *std::move(config);
  options.machine = MachineOf(flags);
  if (!flags.kv_memory.empty()) options.kv_memory = *MemoryBudget::Parse(flags.kv_memory);
  const auto plan = MakePlan(options);
  if (!plan.ok()) return Fail(plan.status(), terminal);
  std::optional<Measurements> measured;
  if (!flags.measured.empty()) {
    auto read = ReadMeasurements(flags.measured, options);
    if (!read.ok()) return Fail(read.status(), terminal);
    measured = *std::move(read);
  }
  if (flags.output == "kubernetes") {
    const double cpus = flags.cpus > 0 ? flags.cpus : (plan->machine.is_gpu ? 4 : 2);
    terminal.out << PlanKubernetes(*plan, {.command = command_line, .cpus = cpus});
  } else {
    terminal.out << (flags.output == "json" ? PlanJson(*plan, measured)
                                            : PlanText(*plan, measured));
  }
  return kSuccess;
}

}  // namespace

PlanCommand AddPlanCommand(CLI::App& app, const std::string& command_line) {
  CLI::App* command = app.add_subcommand(
      "plan", "Tell what a checkpoint needs and could do at most; asks no server");
  auto flags = std::make_shared<Flags>();
  PlanOptions& options = flags->options;
  const std::string machine = "Machine", serving = "Serving", output = "Output";
  command->add_option("model", flags->model, "Checkpoint directory or config.json")->required();

  std::vector<std::string> cards;
  for (const Machine& card : KnownCards()) cards.push_back(card.name);
  command
      ->add_option("--card", flags->card,
                   "GPU, with the rates of its data sheet: " + CLI::detail::join(cards, ", ") +
                       "; a processor if left out")
      ->check(CLI::IsMember(cards).description(""))
      ->type_name("NAME")
      ->group(machine);
  command
      ->add_option("--memory", flags->memory,
                   "Memory of the card, or that the process may take: 4GiB; of a processor as much "
                   "as is needed if left out")
      ->check(CheckBytes)
      ->type_name("BYTES")
      ->group(machine);
  command->add_option("--bandwidth", flags->bandwidth, "Bytes read per second at most: 3.35T")
      ->check(CheckRate)
      ->type_name("RATE")
      ->group(machine);
  command->add_option("--flops", flags->flops, "Operations per second at most: 989T")
      ->check(CheckRate)
      ->type_name("RATE")
      ->group(machine);
  command->add_option("--cpus", flags->cpus, "Processors to request; default: 2, with a GPU 4")
      ->check(CLI::Range(0.1, 1024.0).description(""))
      ->type_name("N")
      ->group(machine);

  command->add_option("--context", options.context, "Tokens of a sequence; default: the most")
      ->type_name("N")
      ->group(serving);
  auto* sequences = command
                        ->add_option("--sequences", options.sequences,
                                     "Sequences of that length that the cache is to hold")
                        ->type_name("N")
                        ->group(serving);
  command
      ->add_option("--kv-memory", flags->kv_memory,
                   "Cache, as for photon-server; default: for --sequences, else 90%")
      ->check(CheckBudget)
      ->excludes(sequences)
      ->type_name("BYTES|SHARE")
      ->group(serving);
  command->add_option("--page-tokens", options.page_tokens, "As for photon-server")
      ->capture_default_str()
      ->type_name("N")
      ->group(serving);
  command->add_option("--max-rows", options.max_rows, "As for photon-server")
      ->default_str("64; 256 on a GPU")
      ->type_name("N")
      ->group(serving);

  command
      ->add_option("--measured", flags->measured,
                   "Show figures of this report of photon-engine-bench --json beside")
      ->type_name("PATH")
      ->group(output);
  command->add_option("--output", flags->output, "text, json or kubernetes")
      ->check(CLI::IsMember({"text", "json", "kubernetes"}).description(""))
      ->capture_default_str()
      ->type_name("FORM")
      ->group(output);
  return {command, [=](const Terminal& terminal) { return Run(*flags, command_line, terminal); }};
}

}  // namespace photon
