// A whole file as read-only memory.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace photon {

// Pages are read when touched and can be dropped under memory pressure. The file must not be
// shortened while mapped: touching bytes that are gone raises SIGBUS. Replace a checkpoint by
// renaming over it.
class MappedFile {
 public:
  // kNotFound, kPermissionDenied, ...: as the system says. kInvalidArgument: not a regular file.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Starts on a page boundary. Valid for the life of this object, from any thread.
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const std::byte* data, size_t size) : data_(data), size_(size) {}

  const std::byte* const data_;  // null for an empty file
  const size_t size_;
};

// A small file, such as a config. kInvalidArgument: longer than `max_bytes`.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes);

}  // namespace photon
