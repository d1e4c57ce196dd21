#include "engine/cpu/host_memory.h"

#include <stdlib.h>
#include <sys/mman.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

namespace photon {
namespace {

// A root with /proc and /sys of the test's making.
class FakeRoot {
 public:
  FakeRoot() : path_(testing::TempDir() + "/photon_root_XXXXXX") {
    EXPECT_NE(mkdtemp(path_.data()), nullptr);
  }
  ~FakeRoot() { std::filesystem::remove_all(path_); }

  void Write(const std::string& file, const std::string& content) const {
    std::filesystem::create_directories(std::filesystem::path(path_ + file).parent_path());
    std::ofstream(path_ + file) << content;
  }
  int64_t Free() const {
    const auto free = FreeHostMemory(path_);
    EXPECT_TRUE(free.ok()) << free.status().ToString();
    return free.value_or(-1);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

constexpr char kMemInfo[] = "MemTotal:  8000 kB\nMemFree:  1000 kB\nMemAvailable:    4000 kB\n";

TEST(FreeHostMemory, ThisMachineHasSome) {
  const auto free = FreeHostMemory();
  ASSERT_TRUE(free.ok()) << free.status().ToString();
  EXPECT_GT(*free, 0);
}

TEST(FreeHostMemory, WithoutControlGroupsItIsWhatIsAvailable) {
  const FakeRoot root;
  root.Write("/proc/meminfo", kMemInfo);
  EXPECT_EQ(root.Free(), 4000 * 1024);
  root.Write("/proc/self/cgroup", "0::/\n");
  EXPECT_EQ(root.Free(), 4000 * 1024);
}

TEST(FreeHostMemory, TheTightestGroupOfVersion2Counts) {
  const FakeRoot root;
  root.Write("/proc/meminfo", kMemInfo);
  root.Write("/proc/self/cgroup", "0::/service/worker\n");
  root.Write("/sys/fs/cgroup/service/worker/memory.max", "max\n");
  root.Write("/sys/fs/cgroup/service/worker/memory.current", "500000\n");
  EXPECT_EQ(root.Free(), 4000 * 1024);
  root.Write("/sys/fs/cgroup/service/memory.max", "2000000\n");
  root.Write("/sys/fs/cgroup/service/memory.current", "700000\n");
  EXPECT_EQ(root.Free(), 1300000);
  // File contents that can be dropped count as free.
  root.Write("/sys/fs/cgroup/service/memory.stat", "anon 600000\ninactive_file 100000\n");
  EXPECT_EQ(root.Free(), 1400000);
  root.Write("/sys/fs/cgroup/service/worker/memory.max", "600000\n");
  EXPECT_EQ(root.Free(), 100000);
  // A group above its limit leaves nothing.
  root.Write("/sys/fs/cgroup/service/worker/memory.max", "400000\n");
  EXPECT_EQ(root.Free(), 0);
}

TEST(FreeHostMemory, AContainerSeesItsOwnGroupAtTheMountsRoot) {
  const FakeRoot root;
  root.Write("/proc/meminfo", kMemInfo);
  root.Write("/proc/self/cgroup", "5:cpu:/x\n4:memory,hugetlb:/docker/0123abcd\n0::/\n");
  root.Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000\n");
  root.Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n");
  root.Write("/sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 50000\n");
  EXPECT_EQ(root.Free(), 2050000);
}

TEST(FreeHostMemory, ASystemThatDoesNotSayIsReported) {
  const FakeRoot root;
  EXPECT_EQ(FreeHostMemory(root.path()).status().code(), absl::StatusCode::kUnavailable);
  root.Write("/proc/meminfo", "MemTotal: 8000 kB\n");
  EXPECT_EQ(FreeHostMemory(root.path()).status().code(), absl::StatusCode::kUnavailable);
}

TEST(AllottedMemory, IsUntakenUntilItIsWrittenTo) {
  constexpr int64_t kBytes = 64 << 20;
  // The system may deal out memory in pieces as large as this.
  constexpr int64_t kHugePage = 2 << 20;
  void* const memory =
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  AllottedMemory allotted;
  EXPECT_EQ(allotted.UntakenBytes(), 0);
  auto entry = allotted.Add(memory, kBytes);
  EXPECT_EQ(allotted.UntakenBytes(), kBytes);
  std::memset(memory, 1, kBytes / 2);
  EXPECT_LE(allotted.UntakenBytes(), kBytes / 2);
  EXPECT_GE(allotted.UntakenBytes(), kBytes / 2 - kHugePage);
  std::memset(memory, 1, kBytes);
  EXPECT_EQ(allotted.UntakenBytes(), 0);
  entry.reset();
  EXPECT_EQ(allotted.UntakenBytes(), 0);
  munmap(memory, kBytes);
}

}  // namespace
}  // namespace photon
