#include "server/document_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/random.h"

namespace photon {
namespace {

constexpr std::chrono::seconds kPinGrace{5};
constexpr int kIdBytes = 16;

}  // namespace

DocumentStore::Place::~Place() {
  if (store_ == nullptr) return;
  std::lock_guard lock(store_->mutex_);
  store_->ReleasePlace(tenant_);
}

DocumentStore::DocumentStore(const DocumentLimits& limits, const Clock* clock, Scheduler* scheduler)
    : limits_(limits), clock_(clock), scheduler_(scheduler) {}

absl::StatusOr<std::unique_ptr<DocumentStore::Place>> DocumentStore::Reserve(TenantId tenant) {
  std::lock_guard lock(mutex_);
  ForgetExpired();
  const auto found = num_of_tenant_.find(tenant);
  const int num_own = found == num_of_tenant_.end() ? 0 : found->second;
  if (num_own >= limits_.max_per_tenant) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there are ", num_own, " documents of at most ", limits_.max_per_tenant,
                     "; delete one, or wait until one expires"));
  }
  if (num_in_total_ >= limits_.max_in_total) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the server has ", num_in_total_, " documents of at most ", limits_.max_in_total));
  }
  ++num_of_tenant_[tenant];
  ++num_in_total_;
  return std::unique_ptr<Place>(new Place(this, tenant));
}

TimePoint DocumentStore::PinUntil(TimePoint expires) {
  return expires + kPinGrace;
}

Document DocumentStore::Add(std::unique_ptr<Place> place, Document document) {
  document.id = RandomHex(kIdBytes);
  document.tenant = place->tenant_;
  place->store_ = nullptr;
  std::lock_guard lock(mutex_);
  documents_[document.id] = document;
  return document;
}

absl::StatusOr<Document> DocumentStore::Find(TenantId tenant, const std::string& id) {
  std::lock_guard lock(mutex_);
  const auto found = Locate(tenant, id);
  if (!found.ok()) return found.status();
  return (*found)->second;
}

std::vector<Document> DocumentStore::List(TenantId tenant) {
  std::vector<Document> list;
  {
    std::lock_guard lock(mutex_);
    ForgetExpired();
    for (const auto& [id, document] : documents_) {
      if (document.tenant == tenant) list.push_back(document);
    }
  }
  std::sort(list.begin(), list.end(),
            [](const Document& a, const Document& b) { return a.created < b.created; });
  return list;
}

absl::StatusOr<Document> DocumentStore::Extend(TenantId tenant, const std::string& id,
                                               TimePoint expires) {
  std::lock_guard lock(mutex_);
  const auto found = Locate(tenant, id);
  if (!found.ok()) return found.status();
  Document& document = (*found)->second;
  document.expires = expires;
  scheduler_->ExtendPin(document.pin, PinUntil(expires));
  return document;
}

absl::Status DocumentStore::Delete(TenantId tenant, const std::string& id) {
  std::lock_guard lock(mutex_);
  const auto found = Locate(tenant, id);
  if (!found.ok()) return found.status();
  Forget(*found);
  return absl::OkStatus();
}

void DocumentStore::ForgetExpired() {
  const TimePoint now = clock_->Now();
  for (auto it = documents_.begin(); it != documents_.end();) {
    const auto next = std::next(it);
    if (it->second.expires <= now) Forget(it);
    it = next;
  }
}

absl::StatusOr<DocumentStore::Documents::iterator> DocumentStore::Locate(TenantId tenant,
                                                                         const std::string& id) {
  ForgetExpired();
  const auto found = documents_.find(id);
  // Another tenant's document is no different from none.
  if (found == documents_.end() || found->second.tenant != tenant) {
    return absl::NotFoundError(absl::StrCat("document_id: no document ", id.substr(0, 2 * kIdBytes),
                                            "; it was never there, has expired or was deleted"));
  }
  return found;
}

void DocumentStore::Forget(Documents::iterator it) {
  scheduler_->Unpin(it->second.pin);
  ReleasePlace(it->second.tenant);
  documents_.erase(it);
}

void DocumentStore::ReleasePlace(TenantId tenant) {
  --num_in_total_;
  const auto found = num_of_tenant_.find(tenant);
  if (--found->second == 0) num_of_tenant_.erase(found);
}

}  // namespace photon
