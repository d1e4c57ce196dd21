// Fair sharing between tenants by virtual token counters.
//
// Each tenant has a counter of the work done for it, and the tenant with the lowest goes next. A
// tenant that comes back from a pause is lifted to the lowest counter of those at work: idleness
// earns no credit. After Sheng et al., "Fairness in Serving Large Language Models" (arXiv
// 2401.00588).
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <map>

#include "scheduler/sequence.h"

namespace photon {

class TenantShares {
 public:
  // One more, or one less, unfinished sequence of `tenant`.
  void Enter(TenantId tenant);
  void Leave(TenantId tenant);

  // Of a tenant with unfinished sequences.
  int64_t counter(TenantId tenant) const { return tenants_.at(tenant).counter; }
  void Charge(TenantId tenant, int64_t cost) { tenants_.at(tenant).counter += cost; }

  int num_active() const { return static_cast<int>(tenants_.size()); }

 private:
  struct Tenant {
    int64_t counter = 0;
    int sequences = 0;
  };
  std::map<TenantId, Tenant> tenants_;  // those with unfinished sequences
  // Where tenants that left stood, for as long as they stand above a newcomer's counter.
  std::map<TenantId, int64_t> debts_;
};

}  // namespace photon
