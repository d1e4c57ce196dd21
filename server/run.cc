#include "server/run.h"

#include <spdlog/spdlog.h>

#include <cstdlib>

#include "server/signals.h"

namespace photon {

int RunUntilEnd(Server& server, const std::function<void()>& on_ready) {
  int exit_code = kExitFatal;
  {
    ServerSignals signals({.drain = [&] { server.Drain(); }, .reload = [&] { server.Reload(); }});
    if (server.AwaitReady().ok()) on_ready();
    if (server.Wait().ok()) exit_code = kExitDrained;
  }
  const SchedulerStats stats = server.stats();
  spdlog::info("ended after {} steps, {} prompt tokens, {} generated tokens; {} cache pages in use",
               stats.steps, stats.prompt_tokens, stats.generated_tokens, stats.pages_in_use);
  if (server.must_be_left_behind()) {
    spdlog::shutdown();
    std::_Exit(exit_code);
  }
  return exit_code;
}

}  // namespace photon
