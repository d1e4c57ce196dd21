// photon: the command line of a photon server. `photon --help` is its manual.

#include <pthread.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/commands.h"

namespace photon {
namespace {

// Turns Ctrl-C and SIGTERM into a request to stop; a second one ends the program at once. To be
// called before other threads start, since they inherit which signals are blocked.
std::stop_token StopOnSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::stop_source source;
  std::thread([signals, source]() mutable {
    int signal = 0;
    sigwait(&signals, &signal);
    source.request_stop();
    sigwait(&signals, &signal);
    _exit(kInterrupted);
  }).detach();
  return source.get_token();
}

// A text that a command takes: as its argument, from a file, or from standard input.
struct TextSource {
  std::optional<std::string> argument;
  std::string file;

  void AddTo(CLI::App& command, const std::string& name) {
    auto* positional =
        command.add_option(name, argument, "The " + name + "; standard input if left out");
    command.add_option("--file", file, "The " + name + " from this file; - is standard input")
        ->type_name("PATH")
        ->excludes(positional);
  }

  // Throws CLI::ValidationError when there is nothing to read.
  std::string Read() const {
    if (argument) return *argument;
    if (file.empty() || file == "-") {
      return std::string(std::istreambuf_iterator<char>(std::cin), {});
    }
    std::ifstream stream(file, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(stream), {}};
    if (!stream) throw CLI::ValidationError("--file", "cannot read " + file);
    return text;
  }
};

void AddGenerateOptions(CLI::App& command, GenerateOptions& options, TextSource& prompt) {
  prompt.AddTo(command, "prompt");
  command.add_option("--prompt-ids", options.prompt_ids, "The prompt as token ids: 1,306,17")
      ->delimiter(',')
      ->type_name("IDS")
      ->allow_extra_args(false)
      ->excludes("prompt")
      ->excludes("--file");

  const std::string generation = "Generation";
  static const std::map<std::string, v1::GenerationMode> kModes = {
      {"exact", v1::GENERATION_MODE_EXACT},
      {"hiergen", v1::GENERATION_MODE_HIERGEN},
      {"recgen", v1::GENERATION_MODE_RECGEN}};
  command
      .add_option_function<std::string>(
          "--mode", [&options](const std::string& name) { options.mode = kModes.at(name); },
          "exact, hiergen or recgen; the server's default if left out")
      ->check(CLI::IsMember(kModes).description(""))
      ->type_name("MODE")
      ->group(generation);
  command.add_option("--max-tokens", options.max_tokens, "Most tokens to generate")
      ->type_name("N")
      ->group(generation);
  command.add_option("--stop", options.stop, "End before this text; may be repeated")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->group(generation);
  command.add_option("--stop-ids", options.stop_ids, "End at any of these token ids: 2,17")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("IDS")
      ->group(generation);
  command
      .add_flag("--ignore-eos", options.ignore_eos, "Go on through the model's end-of-text tokens")
      ->group(generation);

  const std::string sampling = "Sampling";
  command.add_option("--temperature", options.temperature, "0 is greedy; default 1")
      ->type_name("X")
      ->group(sampling);
  command.add_option("--top-k", options.top_k, "Keep the N most probable tokens; 0 keeps all")
      ->type_name("N")
      ->group(sampling);
  command
      .add_option("--top-p", options.top_p, "Keep the fewest tokens that reach this probability")
      ->type_name("X")
      ->group(sampling);
  command.add_option("--min-p", options.min_p, "Drop tokens below this fraction of the best one's")
      ->type_name("X")
      ->group(sampling);
  command.add_option("--seed", options.seed, "The same seed draws the same tokens")
      ->type_name("N")
      ->group(sampling);

  const std::string output = "Output";
  command.add_flag("--echo", options.echo, "Write the prompt before its continuation")
      ->group(output);
  command.add_flag("--ids", options.ids, "Write token ids instead of text")->group(output);
  command
      .add_flag("--logprobs", options.logprobs, "Write a line per token: id and log-probability")
      ->group(output);
  command.add_option("--top-logprobs", options.top_logprobs, "With N alternatives per token")
      ->type_name("N")
      ->group(output);
  command.add_flag("--json", options.json, "Write each message of the stream as a line of JSON")
      ->group(output);
  command.add_flag("--quiet", options.quiet, "No summary on standard error")->group(output);
}

int Main(int argc, char** argv) {
  CLI::App app("Talks to a photon server.", "photon");
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  photon generate \"Once upon a time\"\n"
      "  photon generate --file prompt.txt --mode recgen --temperature 0.8 --seed 7\n"
      "  photon tokenize \"Once upon a time\"\n"
      "Exit codes: 0 success, 1 the call failed, 2 usage, 130 interrupted.");

  const char* environment = std::getenv("PHOTON_SERVER");
  std::string server = environment != nullptr ? environment : ClientOptions().server;
  std::optional<double> deadline_s;
  const auto add_command = [&](const std::string& name, const std::string& description) {
    CLI::App* command = app.add_subcommand(name, description);
    command->add_option("--server", server, "Address of the server; default: $PHOTON_SERVER")
        ->capture_default_str()
        ->type_name("HOST:PORT")
        ->group("Connection");
    command->add_option("--deadline", deadline_s, "Give up after this long; default: never")
        ->type_name("SECONDS")
        ->check(CLI::PositiveNumber.description(""))
        ->group("Connection");
    return command;
  };

  CLI::App* generate =
      add_command("generate", "Continue a prompt; text streams as it is generated");
  GenerateOptions generate_options;
  TextSource prompt;
  AddGenerateOptions(*generate, generate_options, prompt);

  CLI::App* info = add_command("info", "Show the model, what it can do and its limits");
  bool info_json = false;
  info->add_flag("--json", info_json, "Write JSON")->group("Output");

  CLI::App* tokenize = add_command("tokenize", "Turn text into token ids");
  TextSource text;
  text.AddTo(*tokenize, "text");
  bool add_bos = false;
  tokenize->add_flag("--bos", add_bos, "Begin with the BOS token, as generate does");

  CLI::App* detokenize = add_command("detokenize", "Turn token ids into text");
  std::vector<int32_t> ids;
  detokenize->add_option("ids", ids, "Token ids: 306 17, or 306,17")->delimiter(',')->required();

  CLI::App* health = add_command("health", "Tell whether the server is serving");
  std::string service;
  bool wait = false;
  health->add_option("--service", service, "A service's name; the whole server if left out")
      ->type_name("NAME");
  health->add_flag("--wait", wait, "Wait until it serves, or until the deadline");

  // CLI11 takes the last argument first. Underscores in an option's name read as dashes.
  std::vector<std::string> arguments(std::make_reverse_iterator(argv + argc),
                                     std::make_reverse_iterator(argv + 1));
  for (std::string& argument : arguments) {
    if (!argument.starts_with("--")) continue;
    std::replace(argument.begin(), argument.begin() + std::min(argument.find('='), argument.size()),
                 '_', '-');
  }
  try {
    app.parse(std::move(arguments));
    if (*generate && generate_options.prompt_ids.empty()) generate_options.prompt = prompt.Read();
    const std::string tokenize_text = *tokenize ? text.Read() : "";

    ClientOptions options;
    options.server = server;
    if (deadline_s) {
      options.deadline = std::chrono::milliseconds(static_cast<int64_t>(*deadline_s * 1000));
    }
    const Terminal terminal = {std::cout, std::cerr, StopOnSignals()};
    Client client(options);
    if (*generate) return RunGenerate(client, generate_options, terminal);
    if (*info) return RunInfo(client, info_json, terminal);
    if (*tokenize) return RunTokenize(client, tokenize_text, add_bos, terminal);
    if (*detokenize) return RunDetokenize(client, ids, terminal);
    return RunHealth(client, service, wait, terminal);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kSuccess : kUsage;
  }
}

}  // namespace
}  // namespace photon

int main(int argc, char** argv) {
  return photon::Main(argc, argv);
}
