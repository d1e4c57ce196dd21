// The documents that the server keeps: whose they are, what they hold, and how long they live.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/types.h"
#include "scheduler/clock.h"
#include "scheduler/scheduler.h"
#include "server/options.h"

namespace photon {

struct Document {
  std::string id;  // 128 random bits
  std::string display_name;
  TenantId tenant{};
  std::shared_ptr<const std::vector<TokenId>> tokens;
  int64_t cache_bytes = 0;
  TimePoint created;
  TimePoint expires;
  PinId pin{};
};

// Safe to use from many threads. Expired documents are forgotten, and their pins given up, with the
// next call of any kind; should none come, their pins lapse by themselves.
class DocumentStore {
 public:
  // Keeps a place for a document that is being uploaded, until it is added or this is destroyed.
  class Place;

  // What is borrowed outlives the store.
  DocumentStore(const DocumentLimits& limits, const Clock* clock, Scheduler* scheduler);

  // kResourceExhausted: the tenant, or the server, has as many documents as it may.
  absl::StatusOr<std::unique_ptr<Place>> Reserve(TenantId tenant);

  // Until when the pin of a document that expires at `expires` must hold: a little longer, so that
  // a document that can be found is always there.
  static TimePoint PinUntil(TimePoint expires);

  // Adds `document`, whose pin is in force, in the place kept for it; fills in its id. The result
  // is what was added.
  Document Add(std::unique_ptr<Place> place, Document document);

  // kNotFound, here and below: the tenant has no such document, or it has expired.
  absl::StatusOr<Document> Find(TenantId tenant, const std::string& id);

  // The oldest first.
  std::vector<Document> List(TenantId tenant);

  // The document expires at `expires`.
  absl::StatusOr<Document> Extend(TenantId tenant, const std::string& id, TimePoint expires);

  absl::Status Delete(TenantId tenant, const std::string& id);

 private:
  using Documents = std::map<std::string, Document>;  // by id

  void ForgetExpired() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Documents::iterator> Locate(TenantId tenant, const std::string& id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Forget(Documents::iterator it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReleasePlace(TenantId tenant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const DocumentLimits limits_;
  const Clock* const clock_;
  Scheduler* const scheduler_;

  std::mutex mutex_;
  Documents documents_ ABSL_GUARDED_BY(mutex_);
  // Documents and places, of each tenant that has any and together.
  std::map<TenantId, int> num_of_tenant_ ABSL_GUARDED_BY(mutex_);
  int num_in_total_ ABSL_GUARDED_BY(mutex_) = 0;
};

class DocumentStore::Place {
 public:
  ~Place();
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

 private:
  friend class DocumentStore;
  Place(DocumentStore* store, TenantId tenant) : store_(store), tenant_(tenant) {}

  DocumentStore* store_;  // null: a document has taken the place
  const TenantId tenant_;
};

}  // namespace photon
