#include "client/terminal.h"

#include <string>

namespace photon {

int Fail(const absl::Status& status, const Terminal& terminal) {
  if (absl::IsCancelled(status) && terminal.interrupted.stop_requested()) {
    terminal.err << "photon: interrupted\n";
    return kInterrupted;
  }
  terminal.err << "photon: " << absl::StatusCodeToString(status.code()) << ": "
               << std::string(status.message()) << "\n";
  return kFailed;
}

}  // namespace photon
