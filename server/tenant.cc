#include "server/tenant.h"

#include <openssl/sha.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/random.h"

namespace photon {
namespace {

constexpr TenantId kSharedTenant{};
constexpr char kKey[] = "authorization";
constexpr size_t kSchemeLength = 7;  // "Bearer "

// Of a token, with this process's salt: nobody can make a token for another's tenant, nor try out
// tokens against a tenant's name.
TenantId HashToken(std::string_view token) {
  static const std::string salt = RandomHex(16);
  const std::string salted = absl::StrCat(salt, std::string(token));
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(salted.data()), salted.size(), digest);
  uint64_t hash = 0;
  std::memcpy(&hash, digest, sizeof(hash));
  return hash == 0 ? TenantId{1} : TenantId{hash};  // never the shared one
}

}  // namespace

TenantId TenantOf(const grpc::CallbackServerContext& context) {
  const auto found = context.client_metadata().find(kKey);
  if (found == context.client_metadata().end()) return kSharedTenant;
  const std::string_view value(found->second.data(), found->second.size());
  const absl::string_view scheme(value.data(), std::min(value.size(), kSchemeLength));
  if (!absl::EqualsIgnoreCase(scheme, "bearer ")) return kSharedTenant;
  return HashToken(value.substr(kSchemeLength));
}

std::string TenantName(TenantId tenant) {
  if (tenant == kSharedTenant) return "shared";
  return absl::StrCat(absl::Hex(static_cast<uint64_t>(tenant), absl::kZeroPad16));
}

}  // namespace photon
