#include "server/call_registry.h"

#include <vector>

namespace photon {

CallRegistry::Entry::~Entry() {
  std::lock_guard lock(registry_->mutex_);
  registry_->entries_.erase(this);
}

std::unique_ptr<CallRegistry::Entry> CallRegistry::Add(EndCall end) {
  std::unique_ptr<Entry> entry(new Entry(this, std::move(end)));
  std::lock_guard lock(mutex_);
  entries_.insert(entry.get());
  return entry;
}

void CallRegistry::EndAll(const absl::Status& status) {
  std::vector<EndCall> calls;
  {
    std::lock_guard lock(mutex_);
    for (const Entry* entry : entries_) calls.push_back(entry->end_);
  }
  // Without the lock: a call that ends leaves the registry.
  for (const EndCall& end : calls) end(status);
}

}  // namespace photon
