// What a program does with a server that has been started.
#pragma once

#include <functional>

#include "server/server.h"

namespace photon {

inline constexpr int kExitDrained = 0;
inline constexpr int kExitFatal = 1;
inline constexpr int kExitUsage = 2;

// Obeys signals until the server has ended; they have been blocked before any thread began. Calls
// `on_ready` once it is ready. The result is the exit code. Does not return where the server has
// to be left behind: the process ends here, with the same code and the log written.
int RunUntilEnd(Server& server, const std::function<void()>& on_ready);

}  // namespace photon
