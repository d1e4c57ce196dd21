// How long the engine may take; see supervisor.h.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace photon {

struct SupervisorOptions {
  // A step that takes longer makes the server unhealthy until it ends; 0: none does.
  std::chrono::milliseconds max_step_age{10'000};
  // A step that takes longer never ends; 0: it may.
  std::chrono::milliseconds step_timeout{60'000};
  // An idle engine is probed when it has done nothing for this long; 0: at the start alone.
  std::chrono::milliseconds probe_interval{30'000};

  // Every problem.
  std::vector<std::string> Validate() const;
};

}  // namespace photon
