// The calls in flight, so that all of them can be ended where nothing else would end them.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"

namespace photon {

// Any thread.
class CallRegistry {
 public:
  using EndCall = std::function<void(const absl::Status&)>;

  // While it lives, the call is ended with the others.
  class Entry {
   public:
    ~Entry();
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    friend class CallRegistry;
    Entry(CallRegistry* registry, EndCall end) : registry_(registry), end_(std::move(end)) {}

    CallRegistry* const registry_;
    const EndCall end_;
  };

  // `end` owns what it touches: it may still be called when the entry is just gone.
  std::unique_ptr<Entry> Add(EndCall end);

  // Ends the calls that there are.
  void EndAll(const absl::Status& status);

 private:
  std::mutex mutex_;
  std::set<Entry*> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace photon
