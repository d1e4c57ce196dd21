// How much memory a latent pool may take.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace photon {

// So many bytes, or a share of what is free. What is free is the engine's to say, of the memory
// that its pool lives in, once its weights are in place.
class MemoryBudget {
 public:
  // bytes >= 1.
  static constexpr MemoryBudget Bytes(int64_t bytes) { return MemoryBudget(bytes, 0); }
  // 0 < share <= 1.
  static constexpr MemoryBudget ShareOfFree(double share) { return MemoryBudget(0, share); }

  // "1073741824", "512MiB", "1.5g" or "60%". Units are powers of 1024: K, M, G, T, with "B" or "iB"
  // or without, in any case. kInvalidArgument says what is wrong with `text`.
  static absl::StatusOr<MemoryBudget> Parse(std::string_view text);

  bool is_share() const { return share_ != 0; }
  bool is_valid() const { return is_share() ? share_ > 0 && share_ <= 1 : bytes_ > 0; }
  // The bytes, where `free_bytes` are free.
  int64_t Resolve(int64_t free_bytes) const {
    return is_share() ? static_cast<int64_t>(share_ * static_cast<double>(free_bytes)) : bytes_;
  }
  // Where `parts` pools take equal parts of it one after the other: the budget of number `index`,
  // as a share of what those before it have left.
  MemoryBudget Part(int index, int parts) const {
    const double part = share_ / parts;
    return MemoryBudget(bytes_ / parts, part == 0 ? 0 : std::min(1.0, part / (1 - index * part)));
  }
  // "536870912 bytes" or "60% of what is free".
  std::string ToString() const;

  bool operator==(const MemoryBudget&) const = default;

 private:
  constexpr MemoryBudget(int64_t bytes, double share) : bytes_(bytes), share_(share) {}

  int64_t bytes_;
  double share_;  // 0: bytes_ says
};

}  // namespace photon
