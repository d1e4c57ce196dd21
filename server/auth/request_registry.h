// Requests in flight by their ids, so that others can end them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"

namespace photon {

// Any thread.
class RequestRegistry {
 public:
  // While it lives, the request can be cancelled.
  class Entry {
   public:
    ~Entry();
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    friend class RequestRegistry;
    Entry(RequestRegistry* registry, std::string id, std::function<void()> cancel)
        : registry_(registry), id_(std::move(id)), cancel_(std::move(cancel)) {}

    RequestRegistry* const registry_;
    const std::string id_;
    const std::function<void()> cancel_;
  };

  // `cancel` owns what it touches: it may still be called when the entry is just gone. It must not
  // block.
  std::unique_ptr<Entry> Add(const std::string& id, std::function<void()> cancel);

  // How many requests of this id there were to cancel.
  int Cancel(const std::string& id);

 private:
  std::mutex mutex_;
  std::multimap<std::string, Entry*> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace photon
