// How much memory this process may still take from the system.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"

namespace photon {

// Bytes that the system can give without swapping, less where a control group of this process (v1
// or v2, any ancestor) leaves less. File contents that the system can drop count as free.
//   root  what stands before /proc and /sys; for tests
// kUnavailable: the system does not say.
absl::StatusOr<int64_t> FreeHostMemory(const std::string& root = "");

// Memory that has been allotted and is taken from the system as it is first written to: until then
// FreeHostMemory() counts it as free. Any thread.
class AllottedMemory {
 public:
  // While it lives, its memory counts.
  class Entry {
   public:
    ~Entry();
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    friend class AllottedMemory;
    Entry(AllottedMemory* owner, uintptr_t begin) : owner_(owner), begin_(begin) {}

    AllottedMemory* const owner_;
    const uintptr_t begin_;
  };

  // [begin, begin + bytes) stays mapped for as long as the entry lives.
  std::unique_ptr<Entry> Add(const void* begin, int64_t bytes);

  // Of all of it, what is not in memory: never written to, or swapped out.
  int64_t UntakenBytes() const;

 private:
  mutable std::mutex mutex_;
  std::map<uintptr_t, int64_t> sizes_ ABSL_GUARDED_BY(mutex_);  // by begin
};

}  // namespace photon
