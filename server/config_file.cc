#include "server/config_file.h"

#include <toml++/toml.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace photon {
namespace {

// As on a command line; absent: a table, an array or a date.
std::optional<std::string> TextOf(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return std::to_string(number->get());
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  if (const auto* number = node.as_floating_point()) {
    std::ostringstream text;
    text << number->get();
    return text.str();
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<std::vector<FileSetting>> ReadConfigFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<FileSetting> settings;
  std::vector<std::string> problems;
  try {
    for (const auto& [key, node] : toml::parse(text, path)) {
      const int line = static_cast<int>(node.source().begin.line);
      const std::optional<std::string> value = TextOf(node);
      if (value.has_value()) {
        settings.push_back({std::string(key.str()), *value, line});
      } else {
        problems.push_back(absl::StrCat(path, ":", line, ": ", std::string(key.str()),
                                        ": expected a string, a number, true or false"));
      }
    }
  } catch (const toml::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", error.source().begin.line, ": ", std::string(error.description())));
  }
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
  return settings;
}

}  // namespace photon
