// photon-server: serves a PHOTON checkpoint over gRPC. `photon-server keys` makes API keys.
//
// Exit codes: 0 drained, 1 fatal error, 2 usage.
#include <grpc/support/log.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/checkpoint.h"
#include "engine/model/tokenizer.h"
#include "server/auth/keys_command.h"
#include "server/engines.h"
#include "server/flags.h"
#include "server/request_log.h"
#include "server/run.h"
#include "server/server.h"
#include "server/signals.h"
#include "server/span_exporter.h"

namespace photon {
namespace {

int Fail(const absl::Status& status, int exit_code) {
  spdlog::critical("{}", std::string(status.message()));
  return exit_code;
}

// For what flags alone decide, a bad argument is wrong usage.
int ExitCode(const absl::Status& status) {
  return absl::IsInvalidArgument(status) ? kExitUsage : kExitFatal;
}

// Engines and the checkpoint that they read.
struct EnginesAndCheckpoint {
  std::unique_ptr<Checkpoint> checkpoint;
  std::vector<std::unique_ptr<Engine>> engines;
};

// A ModelLoader, once it has its options. What is wrong with a checkpoint is no wrong usage.
absl::StatusOr<LoadedModel> LoadModel(const ProgramOptions& options, const std::string& directory) {
  spdlog::info("loading {}", directory);
  const std::string version = DirectoryVersion(directory);
  auto checkpoint = Checkpoint::Load(directory);
  if (!checkpoint.ok()) return absl::FailedPreconditionError(checkpoint.status().message());
  auto tokenizer = Tokenizer::Load((*checkpoint)->tokenizer_path());
  if (!tokenizer.ok()) return absl::FailedPreconditionError(tokenizer.status().message());
  const ModelConfig& config = (*checkpoint)->config();
  if ((*tokenizer)->vocab_size() > config.vocab_size) {
    return absl::FailedPreconditionError(
        absl::StrCat((*checkpoint)->tokenizer_path(), ": has ", (*tokenizer)->vocab_size(),
                     " pieces, config.json a vocab_size of ", config.vocab_size));
  }

  LoadedModel model;
  model.directory = directory;
  model.version = version;
  model.facts.name = options.model_name;
  model.facts.config = config;
  model.facts.tokenizer = *std::move(tokenizer);
  model.facts.default_mode = options.default_mode;
  model.facts.default_max_tokens = options.default_max_tokens;
  auto owner = std::make_shared<EnginesAndCheckpoint>();
  owner->checkpoint = *std::move(checkpoint);
  try {
    auto engines = OpenEngines(*owner->checkpoint, options.engine);
    if (!engines.ok()) return engines.status();
    owner->engines = *std::move(engines);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat(directory, ": the system does not allot enough memory"));
  }
  const EngineShape& first = owner->engines.front()->shape();
  spdlog::info("model {}: {} parameters, {} levels, meta-context {} tokens, context {} tokens",
               options.model_name, NumParameters(config), config.num_levels(), first.meta_tokens,
               MaxSequenceTokens(first));
  for (const std::unique_ptr<Engine>& engine : owner->engines) {
    const EngineShape& shape = engine->shape();
    spdlog::info("engine {}: {} cache pages of {} tokens and {} bytes, {} rows", shape.device,
                 shape.num_pages, shape.page_tokens, shape.page_bytes, shape.max_rows);
    model.engines.emplace_back(owner, engine.get());
  }
  return model;
}

void LogAddresses(const ProgramOptions& options, const Server& server) {
  if (!server.http_address().empty()) {
    spdlog::info("HTTP at {}://{}/", options.server.access.tls.enabled() ? "https" : "http",
                 server.http_address());
  }
  if (!server.health_address().empty()) spdlog::info("health on {}", server.health_address());
  spdlog::info("serving {} on {}", options.model_name, server.address());
}

// Exports spans of all requests while it lives.
class Traces {
 public:
  explicit Traces(const ProgramOptions& options) {
    if (options.otlp_endpoint.empty()) return;
    exporter_ = std::make_unique<SpanExporter>(
        *SpanExporter::Endpoint::Parse(options.otlp_endpoint), options.model_name);
    ExportSpansTo(exporter_.get());
  }
  ~Traces() { ExportSpansTo(nullptr); }
  Traces(const Traces&) = delete;
  Traces& operator=(const Traces&) = delete;

 private:
  std::unique_ptr<SpanExporter> exporter_;
};

int Serve(const ProgramOptions& options) {
  const Traces traces(options);
  auto model = LoadModel(options, options.model_directory);
  if (!model.ok()) return Fail(model.status(), ExitCode(model.status()));
  auto server =
      Server::Start(options.server, options.scheduler, *std::move(model),
                    [&](const std::string& directory) { return LoadModel(options, directory); });
  if (!server.ok()) return Fail(server.status(), ExitCode(server.status()));
  return RunUntilEnd(**server, [&] { LogAddresses(options, **server); });
}

// Each connection takes two descriptors. The usual soft limit of 1,024 is for programs that use
// select(), which gRPC does not.
void RaiseDescriptorLimit(const ServerOptions& options) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  constexpr rlim_t kOthers = 256;  // files, threads' events, and what else there is
  const rlim_t needed = 2 * static_cast<rlim_t>(options.connections.max_connections) +
                        static_cast<rlim_t>(options.http.max_connections) + kOthers;
  if (limit.rlim_cur < needed) {
    spdlog::warn("max-connections: {} need {} file descriptors, and the system allows {}",
                 options.connections.max_connections, needed, limit.rlim_cur);
  }
}

int Main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "keys") return RunKeysCommand(argc - 1, argv + 1);
  ProgramOptions options;
  if (const std::optional<int> exit_code = ParseFlags(argc, argv, options)) return *exit_code;
  ServerSignals::Block();
  StartLog(options.log_format, options.log_level);
  // gRPC reports what strangers do wrong, such as handshakes: not for them to fill the log with.
  gpr_set_log_function(
      [](gpr_log_func_args* line) { spdlog::debug("gRPC: {}", std::string_view(line->message)); });
  RaiseDescriptorLimit(options.server);
  const int exit_code = Serve(options);
  gpr_set_log_function(nullptr);
  spdlog::shutdown();
  return exit_code;
}

}  // namespace
}  // namespace photon

int main(int argc, char** argv) {
  return photon::Main(argc, argv);
}
