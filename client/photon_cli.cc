// photon: the command line of a photon server. `photon --help` is its manual.

#include <pthread.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/commands.h"
#include "client/plan_command.h"

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

// "number", "text", "regex:PATTERN" or "json:POINTER"; throws CLI::ValidationError.
v1::MajorityVote ParseVote(const std::string& text) {
  v1::MajorityVote vote;
  if (text == "number") {
    vote.set_answer_source(v1::ANSWER_SOURCE_LAST_NUMBER);
  } else if (text == "text") {
    vote.set_answer_source(v1::ANSWER_SOURCE_WHOLE_TEXT);
  } else if (text.starts_with("regex:")) {
    vote.set_answer_source(v1::ANSWER_SOURCE_REGULAR_EXPRESSION);
    vote.set_regular_expression(text.substr(6));
  } else if (text.starts_with("json:")) {
    vote.set_answer_source(v1::ANSWER_SOURCE_JSON_POINTER);
    vote.set_json_pointer(text.substr(5));
  } else {
    throw CLI::ValidationError("--vote", "number, text, regex:PATTERN or json:POINTER");
  }
  return vote;
}

void AddParameters(CLI::App& command, ParameterOptions& options) {
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
  static const std::map<std::string, v1::Priority> kPriorities = {
      {"low", v1::PRIORITY_LOW}, {"normal", v1::PRIORITY_NORMAL}, {"high", v1::PRIORITY_HIGH}};
  command
      .add_option_function<std::string>(
          "--priority",
          [&options](const std::string& name) { options.priority = kPriorities.at(name); },
          "low, normal or high")
      ->check(CLI::IsMember(kPriorities).description(""))
      ->type_name("CLASS")
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

  const std::string samples = "Samples";
  command.add_option("--n", options.n, "Samples of each prompt or question; default 1")
      ->type_name("N")
      ->group(samples);
  auto* vote =
      command
          .add_option_function<std::string>(
              "--vote", [&options](const std::string& text) { options.vote = ParseVote(text); },
              "Majority of answers: number, text, regex:PATTERN or json:POINTER")
          ->type_name("ANSWER")
          ->group(samples);
  command.add_flag("--best", options.best, "The sample with the highest mean log-probability")
      ->group(samples)
      ->excludes(vote);
  command.add_flag("--only-result", options.only_result, "Leave the samples themselves out")
      ->group(samples);

  const std::string output = "Output";
  command
      .add_flag("--logprobs", options.logprobs, "Write a line per token: id and log-probability")
      ->group(output);
  command.add_option("--top-logprobs", options.top_logprobs, "With N alternatives per token")
      ->type_name("N")
      ->group(output);
}

void AddOutput(CLI::App& command, OutputOptions& options) {
  const std::string output = "Output";
  command.add_flag("--ids", options.ids, "Write token ids instead of text")->group(output);
  command.add_flag("--json", options.json, "Write each message of the stream as a line of JSON")
      ->group(output);
  command.add_flag("--quiet", options.quiet, "No summary on standard error")->group(output);
}

// The lines of `text` that have something on them.
std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

// A subcommand: what its arguments fill in, and what it then does.
struct Command {
  CLI::App* app = nullptr;
  // Reads texts; throws CLI::ParseError. Called before `run`.
  std::function<void()> prepare = [] {};
  std::function<int(Client& client, const Terminal& terminal)> run;
};

// Makes a subcommand of `parent` with the options that all have.
using AddApp =
    std::function<CLI::App*(CLI::App& parent, const std::string& name, const std::string& about)>;

void AddGenerationCommands(CLI::App& app, const AddApp& add, std::vector<Command>& commands) {
  CLI::App* generate = add(app, "generate", "Continue a prompt; text streams as it is generated");
  auto options = std::make_shared<GenerateOptions>();
  auto prompt = std::make_shared<TextSource>();
  prompt->AddTo(*generate, "prompt");
  generate->add_option("--prompt-ids", options->prompt_ids, "The prompt as token ids: 1,306,17")
      ->delimiter(',')
      ->type_name("IDS")
      ->allow_extra_args(false)
      ->excludes("prompt")
      ->excludes("--file");
  AddParameters(*generate, options->parameters);
  AddOutput(*generate, options->output);
  generate->add_flag("--echo", options->echo, "Write the prompt before its continuation")
      ->group("Output");
  commands.push_back(
      {.app = generate,
       .prepare =
           [=] {
             if (options->prompt_ids.empty()) options->prompt = prompt->Read();
           },
       .run = [=](Client& client,
                  const Terminal& terminal) { return RunGenerate(client, *options, terminal); }});

  CLI::App* batch = add(app, "batch", "Continue many prompts, one on each line of a text");
  auto batch_options = std::make_shared<BatchOptions>();
  auto prompts = std::make_shared<TextSource>();
  prompts->AddTo(*batch, "prompts");
  AddParameters(*batch, batch_options->parameters);
  AddOutput(*batch, batch_options->output);
  commands.push_back({.app = batch,
                      .prepare = [=] { batch_options->prompts = Lines(prompts->Read()); },
                      .run =
                          [=](Client& client, const Terminal& terminal) {
                            return RunBatch(client, *batch_options, terminal);
                          }});

  CLI::App* ask = add(app, "ask", "Ask questions about a document, which is computed once");
  auto ask_options = std::make_shared<AskOptions>();
  auto file = std::make_shared<TextSource>();
  auto* id = ask->add_option("--document", ask_options->document_id, "The id of a document")
                 ->type_name("ID");
  auto* path =
      ask->add_option("--file", file->file,
                      "The document from this file, kept for this call; - is standard input")
          ->type_name("PATH");
  path->excludes(id);
  ask->add_option("questions", ask_options->questions,
                  "Each continues the document's text as it stands there")
      ->required();
  AddParameters(*ask, ask_options->parameters);
  AddOutput(*ask, ask_options->output);
  commands.push_back(
      {.app = ask,
       .prepare =
           [=] {
             if (path->count() > 0) {
               ask_options->document = file->Read();
             } else if (id->count() == 0) {
               throw CLI::RequiredError("--document or --file");
             }
           },
       .run = [=](Client& client,
                  const Terminal& terminal) { return RunAsk(client, *ask_options, terminal); }});
}

void AddDocumentCommands(CLI::App& app, const AddApp& add, std::vector<Command>& commands) {
  CLI::App* document = app.add_subcommand("document", "Keep documents to be asked often");
  document->require_subcommand(1);
  const auto add_json = [](CLI::App* command, bool& json) {
    command->add_flag("--json", json, "Write JSON")->group("Output");
  };

  CLI::App* create = add(*document, "create", "Upload a text; writes the document's id");
  auto options = std::make_shared<CreateDocumentOptions>();
  auto text = std::make_shared<TextSource>();
  text->AddTo(*create, "text");
  create->add_option("--name", options->name, "A name for people")->type_name("NAME");
  create->add_option("--ttl", options->ttl_s, "How long it lives; the server's default if left out")
      ->type_name("SECONDS");
  add_json(create, options->json);
  commands.push_back({.app = create,
                      .prepare = [=] { options->text = text->Read(); },
                      .run =
                          [=](Client& client, const Terminal& terminal) {
                            return RunCreateDocument(client, *options, terminal);
                          }});

  struct Chosen {
    std::string id;
    int32_t ttl_s = 0;
    bool json = false;
  };
  auto chosen = std::make_shared<Chosen>();
  const auto add_for_id = [&](const std::string& name, const std::string& about) {
    CLI::App* command = add(*document, name, about);
    command->add_option("id", chosen->id, "The document's id")->required();
    return command;
  };
  CLI::App* list = add(*document, "list", "List your documents");
  add_json(list, chosen->json);
  commands.push_back({.app = list, .run = [=](Client& client, const Terminal& terminal) {
                        return RunListDocuments(client, chosen->json, terminal);
                      }});
  CLI::App* get = add_for_id("get", "Show a document");
  add_json(get, chosen->json);
  commands.push_back({.app = get, .run = [=](Client& client, const Terminal& terminal) {
                        return RunGetDocument(client, chosen->id, chosen->json, terminal);
                      }});
  CLI::App* extend = add_for_id("extend", "Set when a document expires");
  extend->add_option("--ttl", chosen->ttl_s, "How long it lives from now on")
      ->type_name("SECONDS")
      ->required();
  add_json(extend, chosen->json);
  commands.push_back({.app = extend, .run = [=](Client& client, const Terminal& terminal) {
                        return RunExtendDocument(client, chosen->id, chosen->ttl_s, chosen->json,
                                                 terminal);
                      }});
  CLI::App* remove = add_for_id("delete", "Delete a document");
  commands.push_back({.app = remove, .run = [=](Client& client, const Terminal& terminal) {
                        return RunDeleteDocument(client, chosen->id, terminal);
                      }});
}

void AddModelCommands(CLI::App& app, const AddApp& add, std::vector<Command>& commands) {
  struct Options {
    bool json = false;
    bool add_bos = false;
    std::vector<int32_t> ids;
    std::string service;
    bool wait = false;
    TextSource text;
    v1::EstimateCostRequest estimate;
  };
  auto options = std::make_shared<Options>();

  CLI::App* info = add(app, "info", "Show the model, what it can do and its limits");
  info->add_flag("--json", options->json, "Write JSON")->group("Output");
  commands.push_back({.app = info, .run = [=](Client& client, const Terminal& terminal) {
                        return RunInfo(client, options->json, terminal);
                      }});

  CLI::App* estimate =
      add(app, "estimate", "Show what a generation would take, and when it could run");
  auto prompt = std::make_shared<TextSource>();
  prompt->AddTo(*estimate, "prompt");
  auto* tokens =
      estimate
          ->add_option_function<int32_t>(
              "--prompt-tokens", [=](int32_t n) { options->estimate.set_prompt_tokens(n); },
              "For a prompt of so many tokens")
          ->type_name("N")
          ->excludes("prompt")
          ->excludes("--file");
  estimate
      ->add_option_function<int32_t>(
          "--max-tokens", [=](int32_t n) { options->estimate.set_max_tokens(n); },
          "Most tokens to generate")
      ->type_name("N");
  estimate->add_flag("--json", options->json, "Write JSON")->group("Output");
  commands.push_back({.app = estimate,
                      .prepare =
                          [=] {
                            if (tokens->count() > 0) return;
                            options->estimate.mutable_prompt()->set_text(prompt->Read());
                          },
                      .run =
                          [=](Client& client, const Terminal& terminal) {
                            return RunEstimate(client, options->estimate, options->json, terminal);
                          }});

  CLI::App* tokenize = add(app, "tokenize", "Turn text into token ids");
  options->text.AddTo(*tokenize, "text");
  tokenize->add_flag("--bos", options->add_bos, "Begin with the BOS token, as generate does");
  auto text = std::make_shared<std::string>();
  commands.push_back({.app = tokenize,
                      .prepare = [=] { *text = options->text.Read(); },
                      .run =
                          [=](Client& client, const Terminal& terminal) {
                            return RunTokenize(client, *text, options->add_bos, terminal);
                          }});

  CLI::App* detokenize = add(app, "detokenize", "Turn token ids into text");
  detokenize->add_option("ids", options->ids, "Token ids: 306 17, or 306,17")
      ->delimiter(',')
      ->required();
  commands.push_back({.app = detokenize, .run = [=](Client& client, const Terminal& terminal) {
                        return RunDetokenize(client, options->ids, terminal);
                      }});

  CLI::App* health = add(app, "health", "Tell whether the server is serving");
  health
      ->add_option("--service", options->service, "A service's name; the whole server if left out")
      ->type_name("NAME");
  health->add_flag("--wait", options->wait, "Wait until it serves, or until the deadline");
  commands.push_back({.app = health, .run = [=](Client& client, const Terminal& terminal) {
                        return RunHealth(client, options->service, options->wait, terminal);
                      }});
}

// How to reach the server, and who to be there.
struct Connection {
  std::string server = ClientOptions().server;
  std::optional<double> deadline_s;
  bool tls = false;
  std::string ca_file;
  std::string certificate_file;
  std::string key_file;
  std::string api_key;
  std::string api_key_file;
  bool insecure = false;

  void ReadEnvironment() {
    const auto read = [](const char* variable, std::string& value) {
      if (const char* text = std::getenv(variable)) value = text;
    };
    read("PHOTON_SERVER", server);
    read("PHOTON_API_KEY", api_key);
    read("PHOTON_API_KEY_FILE", api_key_file);
    read("PHOTON_TLS_CA", ca_file);
    read("PHOTON_CLIENT_CERT", certificate_file);
    read("PHOTON_CLIENT_KEY", key_file);
  }

  void AddTo(CLI::App& command) {
    const std::string group = "Connection";
    command.add_option("--server", server, "Address of the server; default: $PHOTON_SERVER")
        ->capture_default_str()
        ->type_name("HOST:PORT")
        ->group(group);
    command.add_option("--deadline", deadline_s, "Give up after this long; default: never")
        ->type_name("SECONDS")
        ->check(CLI::PositiveNumber.description(""))
        ->group(group);
    command.add_flag("--tls", tls, "Use TLS, with the system's authorities")->group(group);
    command
        .add_option("--tls-ca", ca_file,
                    "Use TLS, with the authorities of this file, in PEM; default: $PHOTON_TLS_CA")
        ->type_name("PATH")
        ->group(group);
    command
        .add_option("--client-cert", certificate_file,
                    "Show the server this certificate, in PEM; default: $PHOTON_CLIENT_CERT")
        ->type_name("PATH")
        ->group(group);
    command
        .add_option("--client-key", key_file, "The certificate's key; default: $PHOTON_CLIENT_KEY")
        ->type_name("PATH")
        ->group(group);
    command
        .add_option("--api-key-file", api_key_file,
                    "The API key is in this file; default: $PHOTON_API_KEY_FILE")
        ->type_name("PATH")
        ->group(group);
    command
        .add_option("--api-key", api_key,
                    "The API key, for all to see who see processes; default: $PHOTON_API_KEY")
        ->type_name("KEY")
        ->group(group);
    command
        .add_flag("--insecure", insecure, "Send the API key in plaintext to other machines, too")
        ->group(group);
  }

  // Throws CLI::ValidationError.
  ClientOptions Options() const {
    ClientOptions options;
    options.server = server;
    if (deadline_s) {
      options.deadline = std::chrono::milliseconds(static_cast<int64_t>(*deadline_s * 1000));
    }
    options.api_key = api_key;
    if (api_key.empty() && !api_key_file.empty()) {
      std::istringstream(ReadFile("--api-key-file", api_key_file)) >> options.api_key;
    }
    if (certificate_file.empty() != key_file.empty()) {
      throw CLI::ValidationError("--client-cert, --client-key", "one needs the other");
    }
    if (tls || !ca_file.empty()) {
      options.tls.emplace();
      if (!ca_file.empty()) options.tls->authorities = ReadFile("--tls-ca", ca_file);
      if (!key_file.empty()) {
        options.tls->certificate = ReadFile("--client-cert", certificate_file);
        options.tls->key = ReadFile("--client-key", key_file);
      }
    } else if (!key_file.empty()) {
      throw CLI::ValidationError("--client-cert", "needs --tls or --tls-ca");
    } else if (!options.api_key.empty() && !insecure && !IsLocal()) {
      throw CLI::ValidationError("--api-key", "plaintext to " + server +
                                                  " can be read by others: needs --tls, --tls-ca "
                                                  "or --insecure");
    }
    return options;
  }

 private:
  static std::string ReadFile(const std::string& option, const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(stream), {}};
    if (!stream || text.empty()) throw CLI::ValidationError(option, "cannot read " + path);
    return text;
  }

  bool IsLocal() const {
    for (const char* local : {"unix:", "unix-abstract:", "localhost:", "127.", "[::1]:"}) {
      if (server.starts_with(local)) return true;
    }
    return false;
  }
};

int Main(int argc, char** argv) {
  CLI::App app("Talks to a photon server.", "photon");
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  photon generate \"Once upon a time\"\n"
      "  photon generate --file prompt.txt --mode recgen --temperature 0.8 --seed 7\n"
      "  photon generate \"6 times 7 is\" --n 16 --vote number --only-result\n"
      "  photon batch --file prompts.txt --max-tokens 40\n"
      "  photon ask --file story.txt \" So the fox\" \" And the owl\"\n"
      "Exit codes: 0 success, 1 the call failed, 2 usage, 130 interrupted.");

  Connection connection;
  connection.ReadEnvironment();
  const AddApp add = [&](CLI::App& parent, const std::string& name, const std::string& about) {
    CLI::App* command = parent.add_subcommand(name, about);
    connection.AddTo(*command);
    return command;
  };
  std::vector<Command> commands;
  AddGenerationCommands(app, add, commands);
  AddDocumentCommands(app, add, commands);
  AddModelCommands(app, add, commands);
  std::string command_line = "photon";
  for (int i = 1; i < argc; ++i) command_line += std::string(" ") + argv[i];
  const PlanCommand plan = AddPlanCommand(app, command_line);

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
    if (plan.app->parsed()) return plan.run({std::cout, std::cerr, {}});
    const auto chosen = std::find_if(commands.begin(), commands.end(),
                                     [](const Command& command) { return command.app->parsed(); });
    const ClientOptions client_options = connection.Options();
    chosen->prepare();
    const Terminal terminal = {std::cout, std::cerr, StopOnSignals()};
    Client client(client_options);
    return chosen->run(client, terminal);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kSuccess : kUsage;
  }
}

}  // namespace
}  // namespace photon

int main(int argc, char** argv) {
  return photon::Main(argc, argv);
}
