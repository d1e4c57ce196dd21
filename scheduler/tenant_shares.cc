#include "scheduler/tenant_shares.h"

#include <algorithm>
#include <limits>

namespace photon {

void TenantShares::Enter(TenantId tenant) {
  const auto [entry, is_new] = tenants_.try_emplace(tenant);
  ++entry->second.sequences;
  if (!is_new) return;

  int64_t lowest = std::numeric_limits<int64_t>::max();
  for (const auto& [id, other] : tenants_) {
    if (id != tenant) lowest = std::min(lowest, other.counter);
  }
  if (tenants_.size() == 1) {
    // Nobody to be fair to.
    debts_.clear();
    return;
  }
  std::erase_if(debts_, [&](const auto& debt) { return debt.second <= lowest; });
  const auto debt = debts_.find(tenant);
  entry->second.counter = debt == debts_.end() ? lowest : debt->second;
  if (debt != debts_.end()) debts_.erase(debt);
}

void TenantShares::Leave(TenantId tenant) {
  const auto entry = tenants_.find(tenant);
  if (--entry->second.sequences > 0) return;
  debts_[tenant] = entry->second.counter;
  tenants_.erase(entry);
  if (tenants_.empty()) debts_.clear();
}

}  // namespace photon
