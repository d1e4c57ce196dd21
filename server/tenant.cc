#include "server/tenant.h"

#include "absl/strings/str_cat.h"
#include "server/auth/call_guard.h"

namespace photon {

TenantId TenantOf(const grpc::CallbackServerContext& context) {
  return CallOf(context).caller()->tenant();
}

std::string TenantName(TenantId tenant) {
  if (tenant == TenantId{}) return "shared";
  return absl::StrCat(absl::Hex(static_cast<uint64_t>(tenant), absl::kZeroPad16));
}

}  // namespace photon
