#include "server/random.h"

#include <openssl/rand.h>

#include <cstdlib>

#include "absl/strings/escaping.h"

namespace photon {

std::string RandomHex(int num_bytes) {
  std::string bytes(num_bytes, '\0');
  // A system without entropy can serve nobody safely.
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), num_bytes) != 1) std::abort();
  return absl::BytesToHexString(bytes);
}

}  // namespace photon
