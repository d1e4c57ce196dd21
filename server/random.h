// Numbers that nobody guesses.
#pragma once

#include <string>

namespace photon {

// `num_bytes` bytes of the system's cryptographic generator in lower-case hex. Any thread.
std::string RandomHex(int num_bytes);

}  // namespace photon
