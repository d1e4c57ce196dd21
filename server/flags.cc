#include "server/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "server/auth/inherited_socket.h"
#include "server/run.h"
#include "server/settings.h"
#include "server/span_exporter.h"

namespace photon {
namespace {

constexpr char kReferenceIntroduction[] =
    R"(# Settings of photon-server

<!-- Made by `photon-server --print-reference`; a test compares. -->

Each setting can be given in three places. The first of them that has it counts:

1. a flag: `--max-rows 64` or `--max-rows=64`; switches such as `--insecure` need no value
2. the environment: `PHOTON_MAX_ROWS=64`
3. the file that `--config` or `PHOTON_CONFIG` names, in [TOML](https://toml.io): `max-rows = 64`, one setting a line

Settings that there are not, in any of the three, are errors, and so are those without effect beside the others. All
problems are told at once, on standard error, and the exit code is 2. `PHOTON_` variables of the clients, and those that
Kubernetes sets for a service of that name, are left alone.

`photon-server --print-config` prints what is in force and where each value comes from, in the form of such a file, and
starts nothing. No setting is a secret: keys and certificates are in files that settings name.

Bytes can be written as `4MiB`; times are in seconds and may have a fraction.
)";

// PHOTON_MAX_ROWS of "max-rows".
std::string VariableOf(const std::string& name) {
  std::string variable = "PHOTON_" + name;
  for (char& c : variable) c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return variable;
}

template <typename Value>
CLI::Option* AddFlag(CLI::App& app, const std::string& group, const std::string& name, Value& value,
                     const std::string& description) {
  return app.add_option("--" + name, value, description)
      ->envname(VariableOf(name))
      ->group(group)
      ->capture_default_str();
}

CLI::Option* AddSwitch(CLI::App& app, const std::string& group, const std::string& name,
                       bool& value, const std::string& description) {
  return app.add_flag("--" + name, value, description)->envname(VariableOf(name))->group(group);
}

template <typename Value>
struct Choice {
  std::string_view name;
  Value value;
};

// One of a few words, in any case.
template <typename Value>
CLI::Option* AddChoice(CLI::App& app, const std::string& group, const std::string& name,
                       Value& value, std::vector<Choice<Value>> choices,
                       const std::string& description) {
  std::string_view default_name;
  std::string names;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) names += i + 1 == choices.size() ? " or " : ", ";
    names += choices[i].name;
    if (choices[i].value == value) default_name = choices[i].name;
  }
  const std::function<void(const std::string&)> set = [&value, name, names,
                                                       choices](const std::string& text) {
    for (const Choice<Value>& choice : choices) {
      if (!absl::EqualsIgnoreCase(text, std::string(choice.name))) continue;
      value = choice.value;
      return;
    }
    throw CLI::ValidationError("--" + name, "expected " + names + ", got " + text);
  };
  return app.add_option_function("--" + name, set, description + ": " + names)
      ->envname(VariableOf(name))
      ->group(group)
      ->default_str(std::string(default_name));
}

double Seconds(std::chrono::milliseconds duration) {
  return std::chrono::duration<double>(duration).count();
}

std::chrono::milliseconds Milliseconds(double seconds) {
  // Far beyond any sensible time, and within the range of what is counted.
  constexpr double kMost = 1e9;
  return std::chrono::milliseconds(static_cast<int64_t>(std::clamp(seconds, -1.0, kMost) * 1000));
}

// What somebody has set although nothing comes of it.
std::vector<std::string> WithoutEffect(const Settings& settings, const ProgramOptions& options) {
  const ServerOptions& server = options.server;
  std::vector<std::string> problems;
  const auto expect = [&](const std::string& name, bool has_effect, const std::string& why) {
    if (has_effect || !settings.is_changed(name)) return;
    problems.push_back(settings.CalledBy(name) + ": has no effect: " + why);
  };
  for (const char* name : {"http-threads", "http-max-connections", "http-max-header-bytes",
                           "http-max-body-bytes", "http-max-response-bytes", "http-header-timeout",
                           "http-body-timeout", "http-idle-timeout", "http-write-timeout"}) {
    expect(name, !server.http.listen.empty(), "http-listen is off");
  }
  expect("insecure", !server.insecure || !server.access.tls.enabled(), "tls-cert is given");
  expect("reload-interval", server.access.tls.enabled() || !server.access.api_keys_file.empty(),
         "there is neither a file of api-keys nor a tls-cert");
  expect("max-connection-age-grace",
         server.max_connection_age.count() > 0 || server.max_connection_age_grace.count() == 0,
         "max-connection-age is 0");
  expect("max-sequences", server.requests.max_sequences <= options.scheduler.max_queue,
         "max-queue limits a call to " + std::to_string(options.scheduler.max_queue));
  expect("default-document-ttl", server.documents.default_ttl <= server.documents.max_ttl,
         "max-document-ttl is less");
  return problems;
}

}  // namespace

std::optional<int> ParseFlags(int argc, char** argv, ProgramOptions& options) {
  CLI::App app("Serves a PHOTON checkpoint over gRPC.", "photon-server");
  app.set_version_flag("--version", PHOTON_VERSION);

  AddFlag(app, "Model", "model", options.model_directory, "Checkpoint directory")->required();
  AddFlag(app, "Model", "name", options.model_name, "Name of the model; default: the directory's");
  AddChoice<GenerationMode>(app, "Model", "default-mode", options.default_mode,
                            {{"exact", GenerationMode::kExact},
                             {"hiergen", GenerationMode::kHierGen},
                             {"recgen", GenerationMode::kRecGen}},
                            "Mode of requests that name none");
  AddFlag(app, "Model", "default-max-tokens", options.default_max_tokens,
          "Most tokens generated by requests that do not say");

  std::string device = "auto";
  AddFlag(app, "Engine", "device", device,
          "What computes: cpu; cuda, every GPU; cuda:0,cuda:1, these; cpu,cpu, replicas on the "
          "processor; or auto, cuda where there is a GPU and otherwise cpu. Each device holds the "
          "whole model and runs its own sequences")
      ->check(
          [](const std::string& text) {
            return std::string(Devices::Parse(text).status().message());
          },
          "");
  AddFlag(
      app, "Engine", "cuda-plugin", options.engine.cuda_plugin,
      "File of the CUDA engine; default: libphoton_cuda_plugin.so, beside this program or where "
      "the system looks for libraries");
  using Compute = EngineOptions::Compute;
  AddFlag(
      app, "Engine", "threads", options.engine.threads,
      "Threads of each replica on the processor; 0: one per processor, shared between replicas");
  AddChoice<Compute>(app, "Engine", "compute", options.engine.compute,
                     {{"bf16", Compute::kBF16}, {"f32", Compute::kF32}}, "Arithmetic");
  using Quantization = EngineOptions::Quantization;
  AddChoice<Quantization>(app, "Engine", "quantization", options.engine.quantization,
                          {{"none", Quantization::kNone}, {"fp8", Quantization::kFp8}},
                          "Weights and inputs of matrix products, on GPUs of compute capability "
                          "9.0; fp8 is e4m3 with a scale for each output and row");
  std::string kv_memory;
  AddFlag(app, "Engine", "kv-memory", kv_memory,
          "Memory of the latent cache on each device: bytes as in 512MiB, or a share as in 60% of "
          "what is free once the weights are loaded (on the CPU: MemAvailable, or what the control "
          "group leaves, taken as it is first used)")
      ->check(
          [](const std::string& text) {
            return std::string(MemoryBudget::Parse(text).status().message());
          },
          "")
      ->default_str("1GiB; 90% of a GPU");
  AddFlag(app, "Engine", "page-tokens", options.engine.page_tokens, "Tokens of a cache page")
      ->default_str("256");
  AddFlag(app, "Engine", "max-rows", options.engine.max_rows, "Sequences in a step of a device")
      ->default_str("64; 256 on a GPU");
  AddFlag(app, "Engine", "max-prefill-tokens", options.engine.max_prefill_tokens,
          "Prompt tokens that one step of a device takes in")
      ->default_str("2048; 8192 on a GPU");

  AddFlag(app, "Scheduler", "max-queue", options.scheduler.max_queue,
          "Sequences that may wait; more are refused");
  AddFlag(app, "Scheduler", "reserved-output-percent", options.scheduler.reserved_output_percent,
          "Share of max_tokens that admission reserves cache for; below 100 sequences may be "
          "preempted and computed again");
  AddFlag(app, "Scheduler", "max-pinned-percent", options.scheduler.max_pinned_percent,
          "Share of the cache that documents may hold");
  int64_t max_pause_s =
      std::chrono::duration_cast<std::chrono::seconds>(options.scheduler.max_pause).count();
  AddFlag(app, "Scheduler", "max-pause", max_pause_s,
          "Seconds that a sequence whose client does not read keeps its cache; then it ends");
  bool no_preempt_for_fairness = false;
  AddSwitch(app, "Scheduler", "no-preempt-for-fairness", no_preempt_for_fairness,
            "Let tenants keep what they got before others came");

  RequestLimits& requests = options.server.requests;
  DocumentLimits& documents = options.server.documents;
  int64_t default_ttl_s = documents.default_ttl.count();
  int64_t max_ttl_s = documents.max_ttl.count();
  AddFlag(app, "Limits", "max-samples", requests.max_samples, "Samples of a prompt or question");
  AddFlag(app, "Limits", "max-prompts", requests.max_prompts, "Prompts of a batch");
  AddFlag(app, "Limits", "max-questions", requests.max_questions, "Questions of a call");
  AddFlag(app, "Limits", "max-sequences", requests.max_sequences,
          "Samples of a call, all together; max-queue limits them too");
  AddFlag(app, "Limits", "max-documents-per-tenant", documents.max_per_tenant,
          "Documents of a tenant");
  AddFlag(app, "Limits", "max-documents", documents.max_in_total, "Documents of all tenants");
  AddFlag(app, "Limits", "max-document-bytes", documents.max_bytes, "Text of a document")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  AddFlag(app, "Limits", "default-document-ttl", default_ttl_s,
          "Seconds that a document lives unless asked for");
  AddFlag(app, "Limits", "max-document-ttl", max_ttl_s,
          "Seconds that a document may live from its last update");

  double drain_pause_s = Seconds(options.server.drain_pause);
  double drain_timeout_s = Seconds(options.server.drain_timeout);
  SupervisorOptions& supervisor = options.server.supervisor;
  double max_step_age_s = Seconds(supervisor.max_step_age);
  double step_timeout_s = Seconds(supervisor.step_timeout);
  double probe_interval_s = Seconds(supervisor.probe_interval);
  AddFlag(
      app, "Server", "listen", options.server.listen,
      "ADDRESS:PORT, unix:PATH or fd:NAME, a socket handed over as systemd does; port 0 takes a "
      "free one");
  AddSwitch(app, "Server", "insecure", options.server.insecure,
            "Allow plaintext on addresses other than loopback ones");
  AddFlag(
      app, "Lifecycle", "drain-pause", drain_pause_s,
      "Seconds after SIGTERM that requests are still taken, so that balancers hear of it first");
  AddFlag(app, "Lifecycle", "drain-timeout", drain_timeout_s,
          "Seconds that accepted requests have to end after that");
  AddFlag(app, "Lifecycle", "max-step-age", max_step_age_s,
          "Seconds after which a step makes the server unready until it ends; 0: none does");
  AddFlag(app, "Lifecycle", "step-timeout", step_timeout_s,
          "Seconds after which a step counts as stuck, and the process ends; 0: none does");
  AddFlag(app, "Lifecycle", "probe-interval", probe_interval_s,
          "Seconds of idleness after which the engine is probed; 0: at the start alone");
  AddFlag(app, "Server", "max-message-bytes", options.server.max_message_bytes,
          "Size of a request message")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  AddFlag(app, "Server", "max-unread-bytes", options.server.max_unread_bytes,
          "Output of a call that may wait unread before its sequences pause")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  AddFlag(app, "Server", "max-streams", options.server.max_streams_per_connection,
          "Calls at a time of one connection");

  ServerOptions& server = options.server;
  AccessOptions& access = server.access;
  double reload_interval_s = Seconds(access.reload_interval);
  std::string reflection;
  AddFlag(app, "Access", "api-keys", access.api_keys_file,
          "File of API keys (see photon-server keys); empty: everybody may call");
  AddFlag(app, "Access", "tls-cert", access.tls.certificate_file,
          "Certificate and those between it and the root, in PEM");
  AddFlag(app, "Access", "tls-key", access.tls.key_file, "Its private key, in PEM");
  AddFlag(app, "Access", "tls-client-ca", access.tls.client_ca_file,
          "Authorities in PEM, of whose clients alone connections are accepted");
  AddFlag(app, "Access", "reload-interval", reload_interval_s,
          "Seconds between looks at these files; SIGHUP has them read at once");
  AddFlag(app, "Access", "health-listen", server.health_listen,
          "ADDRESS:PORT, unix:PATH or fd:NAME of a plain port for health alone; empty: none");
  AddFlag(app, "Access", "reflection", reflection,
          "Tell everybody the services: on or off; default: on unless keys are needed")
      ->check(CLI::IsMember({"on", "off"}));

  HttpOptions& http = server.http;
  double http_header_timeout_s = Seconds(http.header_timeout);
  double http_body_timeout_s = Seconds(http.body_timeout);
  double http_idle_timeout_s = Seconds(http.idle_timeout);
  double http_write_timeout_s = Seconds(http.write_timeout);
  AddFlag(app, "HTTP", "http-listen", http.listen,
          "ADDRESS:PORT or fd:NAME of the HTTP port; port 0 takes a free one; off: none");
  AddFlag(app, "HTTP", "http-threads", http.threads, "Threads of the HTTP port");
  AddFlag(app, "HTTP", "http-max-connections", http.max_connections,
          "Connections at a time; more are told so and closed");
  AddFlag(app, "HTTP", "http-max-header-bytes", http.max_header_bytes,
          "Size of a request's line and headers")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  AddFlag(app, "HTTP", "http-max-body-bytes", http.max_body_bytes, "Size of a request's body")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  AddFlag(app, "HTTP", "http-max-response-bytes", http.max_response_bytes,
          "Size of a response that is not streamed, about")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  AddFlag(app, "HTTP", "http-header-timeout", http_header_timeout_s,
          "Seconds that a request's headers may take");
  AddFlag(app, "HTTP", "http-body-timeout", http_body_timeout_s,
          "Seconds that its body may take after that");
  AddFlag(app, "HTTP", "http-idle-timeout", http_idle_timeout_s,
          "Seconds between requests after which a connection ends");
  AddFlag(app, "HTTP", "http-write-timeout", http_write_timeout_s,
          "Seconds that a client may take nothing of what is written to it");

  double handshake_timeout_s = Seconds(server.handshake_timeout);
  double max_connection_idle_s = Seconds(server.max_connection_idle);
  double max_connection_age_s = Seconds(server.max_connection_age);
  double max_connection_age_grace_s = Seconds(server.max_connection_age_grace);
  double keepalive_interval_s = Seconds(server.keepalive_interval);
  double keepalive_timeout_s = Seconds(server.keepalive_timeout);
  double min_client_ping_interval_s = Seconds(server.min_client_ping_interval);
  AddFlag(app, "Connections", "max-connections", server.connections.max_connections,
          "Connections at a time; more are closed at once");
  AddFlag(app, "Connections", "max-connections-per-address", server.connections.max_per_address,
          "Of them, from one address, or one IPv6 network of 64 bits");
  AddFlag(app, "Connections", "max-metadata-bytes", server.max_metadata_bytes,
          "Size of a call's metadata")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  AddFlag(app, "Connections", "handshake-timeout", handshake_timeout_s,
          "Seconds that a client has to begin");
  AddFlag(app, "Connections", "max-connection-idle", max_connection_idle_s,
          "Seconds without calls after which a connection ends; 0: never");
  AddFlag(app, "Connections", "max-connection-age", max_connection_age_s,
          "Seconds after which clients have to connect again; 0: never");
  AddFlag(app, "Connections", "max-connection-age-grace", max_connection_age_grace_s,
          "Seconds that calls on such a connection have left; 0: what they need");
  AddFlag(app, "Connections", "keepalive-interval", keepalive_interval_s,
          "Seconds without traffic after which a client is pinged");
  AddFlag(app, "Connections", "keepalive-timeout", keepalive_timeout_s,
          "Seconds that it has to answer");
  AddFlag(app, "Connections", "min-client-ping-interval", min_client_ping_interval_s,
          "Seconds between pings of a client; those that ping more often are cut off");

  AddChoice<spdlog::level::level_enum>(app, "Server", "log-level", options.log_level,
                                       {{"debug", spdlog::level::debug},
                                        {"info", spdlog::level::info},
                                        {"warning", spdlog::level::warn},
                                        {"error", spdlog::level::err}},
                                       "What is written to the log");
  AddChoice<LogFormat>(app, "Server", "log-format", options.log_format,
                       {{"text", LogFormat::kText}, {"json", LogFormat::kJson}},
                       "Lines of the log");
  AddFlag(app, "Server", "otlp-endpoint", options.otlp_endpoint,
          "http://HOST:PORT of an OpenTelemetry collector that gets a span of each request; empty: "
          "none");

  Settings settings(&app);
  const std::map<std::string, std::string> environment = ProcessEnvironment();
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  for (const std::string& argument : arguments) {
    const bool wants_help = argument == "--help" || argument == "-h";
    if (!wants_help && argument != "--version") continue;
    std::cout << (wants_help ? app.help() : PHOTON_VERSION "\n");
    return kExitDrained;
  }
  std::vector<std::string> problems = settings.Read(arguments, environment);
  if (settings.prints_reference()) {
    std::cout << kReferenceIntroduction << settings.Reference();
    return kExitDrained;
  }
  if (const auto devices = Devices::Parse(device); devices.ok()) options.engine.devices = *devices;
  if (const auto budget = MemoryBudget::Parse(kv_memory); budget.ok()) {
    options.engine.kv_memory = *budget;
  }
  server.drain_pause = Milliseconds(drain_pause_s);
  server.drain_timeout = Milliseconds(drain_timeout_s);
  supervisor.max_step_age = Milliseconds(max_step_age_s);
  supervisor.step_timeout = Milliseconds(step_timeout_s);
  supervisor.probe_interval = Milliseconds(probe_interval_s);
  access.reload_interval = Milliseconds(reload_interval_s);
  if (!reflection.empty()) server.reflection = reflection == "on";
  if (http.listen == "off") http.listen.clear();
  http.header_timeout = Milliseconds(http_header_timeout_s);
  http.body_timeout = Milliseconds(http_body_timeout_s);
  http.idle_timeout = Milliseconds(http_idle_timeout_s);
  http.write_timeout = Milliseconds(http_write_timeout_s);
  server.handshake_timeout = Milliseconds(handshake_timeout_s);
  server.max_connection_idle = Milliseconds(max_connection_idle_s);
  server.max_connection_age = Milliseconds(max_connection_age_s);
  server.max_connection_age_grace = Milliseconds(max_connection_age_grace_s);
  server.keepalive_interval = Milliseconds(keepalive_interval_s);
  server.keepalive_timeout = Milliseconds(keepalive_timeout_s);
  server.min_client_ping_interval = Milliseconds(min_client_ping_interval_s);
  options.scheduler.max_pause = std::chrono::seconds(max_pause_s);
  options.scheduler.preempt_for_fairness = !no_preempt_for_fairness;
  documents.default_ttl = std::chrono::seconds(default_ttl_s);
  documents.max_ttl = std::chrono::seconds(max_ttl_s);
  if (options.model_name.empty()) {
    options.model_name =
        std::filesystem::path(options.model_directory + "/").parent_path().filename().string();
  }
  for (std::string* address : {&server.listen, &server.health_listen, &http.listen}) {
    absl::StatusOr<std::string> resolved = ResolveInherited(*address, environment);
    if (resolved.ok()) {
      *address = *std::move(resolved);
    } else {
      problems.emplace_back(resolved.status().message());
    }
  }
  if (!options.otlp_endpoint.empty()) {
    const auto endpoint = SpanExporter::Endpoint::Parse(options.otlp_endpoint);
    if (!endpoint.ok()) {
      problems.push_back(settings.CalledBy("otlp-endpoint") + ": " +
                         std::string(endpoint.status().message()));
    }
  }
  for (std::string& problem : server.Validate()) problems.push_back(std::move(problem));
  for (std::string& problem : WithoutEffect(settings, options)) {
    problems.push_back(std::move(problem));
  }
  for (const std::string& problem : problems) std::cerr << problem << "\n";
  if (!problems.empty()) return kExitUsage;
  if (settings.prints_config()) {
    std::cout << settings.Print();
    return kExitDrained;
  }
  return std::nullopt;
}

}  // namespace photon
