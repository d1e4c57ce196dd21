// The checks that every engine makes before a step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine.h"

namespace photon {

// What of a step's page tables is checked.
enum class PageChecks {
  // Pages that rows write, and the last page that each reads. Grows with rows and with what they
  // compute, not with their contexts.
  kWritten,
  // Every page of every table: grows with the summed contexts.
  kAll,
};

// Everything where assertions are on, so that tests see a scheduler's every mistake.
#ifdef NDEBUG
inline constexpr PageChecks kDefaultPageChecks = PageChecks::kWritten;
#else
inline constexpr PageChecks kDefaultPageChecks = PageChecks::kAll;
#endif

// Used by one thread at a time; validating allocates nothing once it has seen a step as large.
class StepValidator {
 public:
  explicit StepValidator(const EngineShape& shape, PageChecks checks = kDefaultPageChecks);

  // kInvalidArgument names the row or copy, its field, the limit and the value:
  // "rows[3].cached_tokens: must be a multiple of 16, got 20".
  absl::Status Validate(std::span<const PageCopy> copies, std::span<const Row> rows);

 private:
  // A set of pages, emptied in time of its size.
  class PageSet {
   public:
    explicit PageSet(int num_pages) : bits_((static_cast<size_t>(num_pages) + 63) / 64) {}

    bool Contains(PageId page) const { return (Word(page) >> Bit(page) & 1) != 0; }
    // False: it was there.
    bool Insert(PageId page);
    void Clear();

   private:
    static int Bit(PageId page) { return static_cast<int32_t>(page) % 64; }
    const uint64_t& Word(PageId page) const { return bits_[static_cast<int32_t>(page) / 64]; }
    uint64_t& Word(PageId page) { return bits_[static_cast<int32_t>(page) / 64]; }

    std::vector<uint64_t> bits_;
    std::vector<PageId> pages_;
  };

  absl::Status ValidateCopies(std::span<const PageCopy> copies);
  absl::Status ValidateRow(const Row& row);
  // Of a row that ValidateRow accepts: collects, then checks against what all rows write.
  absl::Status CollectWrites(const Row& row);
  absl::Status CheckReads(const Row& row) const;
  bool IsPage(PageId page) const;

  const EngineShape shape_;
  const PageChecks checks_;
  // Of the step at hand.
  PageSet copied_from_, copied_to_, written_;
};

}  // namespace photon
