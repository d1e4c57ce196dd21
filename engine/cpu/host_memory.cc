#include "engine/cpu/host_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"

namespace photon {
namespace {

// How a version of control groups names what it says.
struct CgroupFiles {
  const char* mount;
  const char* limit;
  const char* usage;
  const char* droppable;  // key in memory.stat
};
constexpr CgroupFiles kVersion1 = {"/sys/fs/cgroup/memory", "/memory.limit_in_bytes",
                                   "/memory.usage_in_bytes", "total_inactive_file"};
constexpr CgroupFiles kVersion2 = {"/sys/fs/cgroup", "/memory.max", "/memory.current",
                                   "inactive_file"};

// The number after `key` in a file of "key number" lines.
std::optional<int64_t> FindNumber(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key + " ") && !line.starts_with(key + ":")) continue;
    return std::strtoll(line.c_str() + key.size() + 1, nullptr, 10);
  }
  return std::nullopt;
}

// A file that holds one number; nothing where it is absent or says "max".
std::optional<int64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

// The least that the group at `path` and those above it leave. A container may see its own group
// as the mount's root, or the host's path below it: groups that are not there are passed over.
int64_t LeftByCgroups(const std::string& root, const CgroupFiles& files, std::string path) {
  int64_t left = INT64_MAX;
  while (true) {
    const std::string group = absl::StrCat(root, files.mount, path);
    const auto limit = ReadNumber(group + files.limit), usage = ReadNumber(group + files.usage);
    if (limit && usage) {
      const int64_t droppable = FindNumber(group + "/memory.stat", files.droppable).value_or(0);
      left = std::min(left, std::max<int64_t>(0, *limit - *usage + droppable));
    }
    if (path.empty()) return left;
    path.resize(path.rfind('/'));
  }
}

}  // namespace

absl::StatusOr<int64_t> FreeHostMemory(const std::string& root) {
  const auto available_kb = FindNumber(root + "/proc/meminfo", "MemAvailable");
  if (!available_kb) {
    return absl::UnavailableError("/proc/meminfo does not say how much memory is available");
  }
  int64_t free = *available_kb * 1024;
  // Lines are "hierarchy:controllers:/path"; version 2 is hierarchy 0 without controllers.
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string path = line.substr(second + 1);
    if (!path.starts_with('/')) continue;
    if (path == "/") path.clear();
    if (controllers == ",,") {
      free = std::min(free, LeftByCgroups(root, kVersion2, path));
    } else if (controllers.find(",memory,") != std::string::npos) {
      free = std::min(free, LeftByCgroups(root, kVersion1, path));
    }
  }
  return free;
}

AllottedMemory::Entry::~Entry() {
  std::lock_guard lock(owner_->mutex_);
  owner_->sizes_.erase(begin_);
}

std::unique_ptr<AllottedMemory::Entry> AllottedMemory::Add(const void* begin, int64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  std::lock_guard lock(mutex_);
  sizes_[address] = bytes;
  return std::unique_ptr<Entry>(new Entry(this, address));
}

int64_t AllottedMemory::UntakenBytes() const {
  constexpr uintptr_t kPagesAtATime = 1 << 16;
  const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> in_memory(kPagesAtATime);
  int64_t untaken = 0;
  std::lock_guard lock(mutex_);
  for (const auto& [begin, bytes] : sizes_) {
    // Pages that it shares with other memory are taken already, or as good as nothing.
    const uintptr_t end = (begin + static_cast<uintptr_t>(bytes)) / page_bytes * page_bytes;
    uintptr_t page = (begin + page_bytes - 1) / page_bytes * page_bytes;
    while (page < end) {
      const uintptr_t pages = std::min((end - page) / page_bytes, kPagesAtATime);
      // Where the system does not say, everything is still to be taken.
      if (mincore(reinterpret_cast<void*>(page), pages * page_bytes, in_memory.data()) != 0) {
        std::fill_n(in_memory.begin(), pages, 0);
      }
      untaken += static_cast<int64_t>(page_bytes) *
                 std::count_if(in_memory.begin(), in_memory.begin() + static_cast<int64_t>(pages),
                               [](unsigned char state) { return (state & 1) == 0; });
      page += pages * page_bytes;
    }
  }
  return untaken;
}

}  // namespace photon
