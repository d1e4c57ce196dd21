#include "server/auth/request_registry.h"

#include <utility>
#include <vector>

namespace photon {

RequestRegistry::Entry::~Entry() {
  std::lock_guard lock(registry_->mutex_);
  const auto [begin, end] = registry_->entries_.equal_range(id_);
  for (auto it = begin; it != end; ++it) {
    if (it->second != this) continue;
    registry_->entries_.erase(it);
    return;
  }
}

std::unique_ptr<RequestRegistry::Entry> RequestRegistry::Add(const std::string& id,
                                                             std::function<void()> cancel) {
  std::unique_ptr<Entry> entry(new Entry(this, id, std::move(cancel)));
  std::lock_guard lock(mutex_);
  entries_.emplace(id, entry.get());
  return entry;
}

int RequestRegistry::Cancel(const std::string& id) {
  std::vector<std::function<void()>> cancels;
  {
    std::lock_guard lock(mutex_);
    const auto [begin, end] = entries_.equal_range(id);
    for (auto it = begin; it != end; ++it) cancels.push_back(it->second->cancel_);
  }
  // Without the lock: a request that ends removes its entry.
  for (const auto& cancel : cancels) cancel();
  return static_cast<int>(cancels.size());
}

}  // namespace photon
