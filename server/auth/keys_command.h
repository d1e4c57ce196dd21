// `photon-server keys`: makes API keys, and checks files of them.
#pragma once

namespace photon {

// Takes the arguments from "keys" on. Returns the exit code: 0, 1 where a file has problems, 2 for
// wrong usage.
int RunKeysCommand(int argc, const char* const* argv);

}  // namespace photon
