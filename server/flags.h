// The settings of photon-server; docs/configuration.md is made from them.
#pragma once

#include <spdlog/common.h>

#include <optional>
#include <string>

#include "scheduler/scheduler.h"
#include "server/engines.h"
#include "server/options.h"
#include "server/request_log.h"

namespace photon {

// Everything that an operator can set.
struct ProgramOptions {
  std::string model_directory;
  std::string model_name;  // empty: the directory's
  GenerationMode default_mode = GenerationMode::kExact;
  int default_max_tokens = 256;
  EngineOptions engine;
  SchedulerOptions scheduler;
  ServerOptions server;
  spdlog::level::level_enum log_level = spdlog::level::info;
  LogFormat log_format = LogFormat::kText;
  std::string otlp_endpoint;  // see SpanExporter::Endpoint; empty: no traces
};

// Fills `options` from the command line, the environment and the file that --config names; an exit
// code where the program ends here, with every problem on standard error.
std::optional<int> ParseFlags(int argc, char** argv, ProgramOptions& options);

}  // namespace photon
