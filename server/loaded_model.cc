#include "server/loaded_model.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace photon {

EngineShape ShapeOfAll(const std::vector<std::shared_ptr<Engine>>& engines) {
  EngineShape shape = engines.front()->shape();
  for (size_t i = 1; i < engines.size(); ++i) {
    const EngineShape& other = engines[i]->shape();
    shape.num_pages += other.num_pages;
    shape.max_rows += other.max_rows;
    shape.device += ", " + other.device;
  }
  return shape;
}

std::string DirectoryVersion(const std::string& directory) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    struct stat status;
    if (stat(entry.path().c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
    files.push_back(absl::StrCat(entry.path().filename().string(), " ", status.st_dev, " ",
                                 status.st_ino, " ", status.st_size, " ", status.st_mtim.tv_sec,
                                 ".", status.st_mtim.tv_nsec));
  }
  std::sort(files.begin(), files.end());
  return absl::StrJoin(files, "\n");
}

}  // namespace photon
