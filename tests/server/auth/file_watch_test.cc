#include "server/auth/file_watch.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>

namespace photon {
namespace {

using std::chrono::milliseconds;

class FileWatchTest : public ::testing::Test {
 protected:
  FileWatchTest() : directory_(::testing::TempDir() + "/file_watch_" + TestName()) {
    std::filesystem::create_directories(directory_);
  }
  ~FileWatchTest() override { std::filesystem::remove_all(directory_); }

  static std::string TestName() {
    return ::testing::UnitTest::GetInstance()->current_test_info()->name();
  }

  std::string Path(const std::string& name) const { return directory_ + "/" + name; }
  static void Write(const std::string& path, const std::string& text) {
    std::ofstream(path) << text;
  }

  void OnChange() {
    std::lock_guard lock(mutex_);
    ++num_changes_;
    changed_.notify_all();
  }
  // True once there have been so many changes; the test's timeout is the limit.
  void AwaitChanges(int number) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_changes_ >= number; });
  }

  const std::string directory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int num_changes_ = 0;
};

TEST_F(FileWatchTest, AFileWrittenInPlaceIsAChange) {
  Write(Path("file"), "1");
  FileWatch watch({Path("file")}, milliseconds(1), [this] { OnChange(); });
  Write(Path("file"), "22");
  AwaitChanges(1);
}

TEST_F(FileWatchTest, FilesReplacedAndRemovedAreChanges) {
  Write(Path("file"), "1");
  Write(Path("next"), "2");
  FileWatch watch({Path("other"), Path("file")}, milliseconds(1), [this] { OnChange(); });
  std::filesystem::rename(Path("next"), Path("file"));
  AwaitChanges(1);
  std::filesystem::remove(Path("file"));
  AwaitChanges(2);
}

TEST_F(FileWatchTest, ALinkThatIsSwitchedIsAChange) {
  Write(Path("old"), "same");
  Write(Path("new"), "same");
  std::filesystem::create_symlink(Path("old"), Path("link"));
  FileWatch watch({Path("link")}, milliseconds(1), [this] { OnChange(); });
  std::filesystem::create_symlink(Path("new"), Path("next"));
  std::filesystem::rename(Path("next"), Path("link"));
  AwaitChanges(1);
}

TEST_F(FileWatchTest, ATriggerCallsWithoutAChange) {
  Write(Path("file"), "1");
  FileWatch watch({Path("file")}, std::chrono::hours(1), [this] { OnChange(); });
  watch.Trigger();
  AwaitChanges(1);
}

}  // namespace
}  // namespace photon
