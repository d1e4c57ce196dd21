// `photon plan`, the one command that talks to no server.
#pragma once

#include <CLI/App.hpp>
#include <functional>
#include <string>

#include "client/terminal.h"

namespace photon {

struct PlanCommand {
  CLI::App* app = nullptr;
  std::function<int(const Terminal& terminal)> run;  // the exit code
};

// Adds the command to `app`. What it writes for Kubernetes names `command_line` as its origin.
PlanCommand AddPlanCommand(CLI::App& app, const std::string& command_line);

}  // namespace photon
