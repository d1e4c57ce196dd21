#include "server/settings.h"

#include <re2/re2.h>
#include <unistd.h>

#include <CLI/Error.hpp>
#include <CLI/Option.hpp>
#include <algorithm>
#include <array>
#include <cctype>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/config_file.h"

namespace photon {
namespace {

constexpr std::string_view kPrefix = "PHOTON_";
// In a default that says what the value depends on, and is none itself: "64; 256 on a GPU".
constexpr char kDepends[] = "; ";
// Of the programs beside this one.
constexpr std::array<std::string_view, 7> kClientVariables = {
    "PHOTON_SERVER", "PHOTON_HTTP",        "PHOTON_API_KEY",   "PHOTON_API_KEY_FILE",
    "PHOTON_TLS_CA", "PHOTON_CLIENT_CERT", "PHOTON_CLIENT_KEY"};
// What Kubernetes tells every container of a service that is called photon or photon-...
constexpr char kServiceLinks[] =
    "PHOTON_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|"
    "PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)";

// Without the dashes. CLI11 does not name hidden options, but has their names.
std::string NameOf(const CLI::Option& option) {
  return option.get_lnames().empty() ? "" : option.get_lnames().front();
}

std::string WithDashes(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

bool IsFlag(const CLI::Option& option) {
  return option.get_expected_min() == 0;
}

// Of Levenshtein.
int Distance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    int diagonal = std::exchange(row[0], static_cast<int>(i) + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const int replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

// Of the value of a setting, as CLI11 says it but without the setting's name.
std::string WhatIsWrong(const CLI::Error& error, const CLI::Option& option,
                        const std::string& value) {
  if (dynamic_cast<const CLI::ConversionError*>(&error) != nullptr) {
    const char* wanted = IsFlag(option) ? "true or false" : "a number";
    return absl::StrCat("expected ", wanted, ", got ", value.empty() ? "nothing" : value);
  }
  std::string text = error.what();
  const std::string name = absl::StrCat(option.get_name(), ": ");
  return text.starts_with(name) ? text.substr(name.size()) : text;
}

bool IsBareToml(const std::string& value) {
  static const RE2 bare("-?(0|[1-9][0-9]*)(\\.[0-9]+)?(e[+-]?[0-9]+)?");
  return RE2::FullMatch(value, bare);
}

std::string TomlValue(const CLI::Option& option, const std::string& value) {
  if (IsFlag(option) || IsBareToml(value)) return value;
  // A basic string of TOML has the escapes of JSON's.
  return nlohmann::json(value).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

std::map<std::string, std::string> ProcessEnvironment() {
  std::map<std::string, std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(*entry, absl::MaxSplits('=', 1));
    environment.insert(parts);
  }
  return environment;
}

Settings::Settings(CLI::App* app) : app_(app) {
  app->add_option("--config", config_path_, "File of settings, in TOML")
      ->envname("PHOTON_CONFIG")
      ->group("Configuration");
  app->add_flag("--print-config", print_config_,
                "Print the settings in force and where they come from, as such a file, and exit")
      ->group("Configuration");
  app->add_flag("--print-reference", print_reference_)->group("");
}

std::vector<std::string> Settings::Read(const std::vector<std::string>& arguments,
                                        const std::map<std::string, std::string>& environment) {
  Layer flags = ReadArguments(arguments);
  Layer variables = ReadEnvironment(environment);
  for (const Layer* layer : {&variables, &flags}) {
    const auto path = layer->find("config");
    if (path != layer->end()) config_path_ = path->second.value;
  }
  Layer file;
  if (!config_path_.empty()) file = ReadFile(config_path_);
  // Values that do not count are looked at as well: a mistake should not wait for its day.
  for (const Layer* layer : {&file, &variables, &flags}) {
    for (const auto& [name, given] : *layer) {
      Apply(name, given);
      given_[name] = given;
    }
  }
  // A bad value of a lower layer may have left its mark.
  if (problems_.empty()) {
    for (const auto& [name, given] : given_) Apply(name, given);
  }
  for (const CLI::Option* option : app_->get_options()) {
    if (option->get_required() && !given_.contains(NameOf(*option))) {
      problems_.push_back(absl::StrCat(option->get_name(), ": is required"));
    }
  }
  return std::move(problems_);
}

CLI::Option* Settings::Find(const std::string& name) const {
  return app_->get_option_no_throw("--" + name);
}

bool Settings::is_changed(const std::string& name) const {
  const auto given = given_.find(name);
  return given != given_.end() && given->second.value != Find(name)->get_default_str();
}

std::string Settings::CalledBy(const std::string& name) const {
  const auto given = given_.find(name);
  return given == given_.end() ? "--" + name : given->second.called;
}

std::string Settings::Unknown(const std::string& called, std::string_view what,
                              const std::string& name) const {
  std::string problem = absl::StrCat(called, ": there is no such ", std::string(what));
  std::optional<std::string> nearest;
  int least = static_cast<int>(name.size()) / 3 + 1;
  for (const CLI::Option* option : app_->get_options()) {
    const std::string candidate = NameOf(*option);
    if (option->get_group().empty()) continue;
    const int distance = Distance(name, candidate);
    if (distance > least || (nearest.has_value() && distance == least)) continue;
    least = distance;
    nearest = what == "variable" ? option->get_envname() : candidate;
    if (what == "flag") nearest = "--" + candidate;
  }
  if (nearest.has_value() && !nearest->empty()) {
    absl::StrAppend(&problem, "; did you mean ", *nearest, "?");
  }
  return problem;
}

Settings::Layer Settings::ReadArguments(const std::vector<std::string>& arguments) {
  Layer layer;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (!argument.starts_with("--") || argument.size() == 2) {
      problems_.push_back(absl::StrCat(argument, ": expected a flag, as --NAME VALUE"));
      continue;
    }
    const size_t equals = argument.find('=');
    const std::string name = WithDashes(argument.substr(2, equals - 2));
    const std::string called = "--" + name;
    const CLI::Option* option = Find(name);
    std::optional<std::string> value;
    if (equals != std::string::npos) value = argument.substr(equals + 1);
    if (option == nullptr) {
      problems_.push_back(Unknown(called, "flag", name));
      // What follows an unknown flag is most probably its value.
      if (!value.has_value() && i + 1 < arguments.size() && !arguments[i + 1].starts_with("--")) {
        ++i;
      }
      continue;
    }
    if (!value.has_value() && IsFlag(*option)) value = "true";
    if (!value.has_value()) {
      if (i + 1 == arguments.size()) {
        problems_.push_back(absl::StrCat(called, ": expected a value after it"));
        continue;
      }
      value = arguments[++i];
    }
    if (layer.contains(name)) problems_.push_back(absl::StrCat(called, ": is given twice"));
    layer[name] = {*value, Source::kFlag, called};
  }
  return layer;
}

Settings::Layer Settings::ReadEnvironment(const std::map<std::string, std::string>& environment) {
  static const RE2 service_links(kServiceLinks);
  Layer layer;
  for (const auto& [variable, value] : environment) {
    if (!variable.starts_with(kPrefix)) continue;
    std::string name = WithDashes(variable.substr(kPrefix.size()));
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    const CLI::Option* option = Find(name);
    if (option != nullptr && option->get_envname() == variable) {
      layer[name] = {value, Source::kEnvironment, variable};
      continue;
    }
    const bool is_others = std::find(kClientVariables.begin(), kClientVariables.end(), variable) !=
                               kClientVariables.end() ||
                           RE2::FullMatch(variable, service_links);
    if (!is_others) problems_.push_back(Unknown(variable, "variable", name));
  }
  return layer;
}

Settings::Layer Settings::ReadFile(const std::string& path) {
  Layer layer;
  const auto settings = ReadConfigFile(path);
  if (!settings.ok()) {
    for (const auto problem : absl::StrSplit(settings.status().message(), '\n')) {
      problems_.emplace_back(problem);
    }
    return layer;
  }
  for (const FileSetting& setting : *settings) {
    const std::string name = WithDashes(setting.name);
    const std::string called = absl::StrCat(path, ":", setting.line, ": ", setting.name);
    const CLI::Option* option = Find(name);
    if (option == nullptr || !IsSetting(option) || name == "config") {
      problems_.push_back(Unknown(called, "setting", name));
    } else if (layer.contains(name)) {
      problems_.push_back(absl::StrCat(called, ": is given twice"));
    } else {
      layer[name] = {setting.value, Source::kFile, called};
    }
  }
  return layer;
}

void Settings::Apply(const std::string& name, const Given& given) {
  CLI::Option* option = Find(name);
  option->clear();
  try {
    option->add_result(given.value);
    option->run_callback();
  } catch (const CLI::Error& error) {
    problems_.push_back(absl::StrCat(given.called, ": ", WhatIsWrong(error, *option, given.value)));
  }
}

std::string Settings::Print() const {
  std::string text;
  for (const std::string& group : app_->get_groups()) {
    std::string lines;
    for (const CLI::Option* option : app_->get_options()) {
      const std::string name = NameOf(*option);
      if (!IsSetting(option) || option->get_group() != group || name == "config") continue;
      const auto given = given_.find(name);
      std::string value = option->get_default_str();
      std::string origin = "default";
      if (given != given_.end()) {
        value = given->second.value;
        origin = given->second.called;
        if (given->second.source == Source::kFile) origin = origin.substr(0, origin.rfind(": "));
      } else if (!IsFlag(*option) && (value.empty() || absl::StrContains(value, kDepends))) {
        absl::StrAppend(&lines, "# ", name, " is not set", value.empty() ? "" : ": ", value, "\n");
        continue;
      } else if (value.empty()) {
        value = "false";
      }
      absl::StrAppend(&lines, name, " = ", TomlValue(*option, value), "  # ", origin, "\n");
    }
    if (!lines.empty()) absl::StrAppend(&text, text.empty() ? "" : "\n", "# ", group, "\n", lines);
  }
  return text;
}

std::string Settings::Reference() const {
  std::string text;
  for (const std::string& group : app_->get_groups()) {
    std::string rows;
    for (const CLI::Option* option : app_->get_options()) {
      if (!IsSetting(option) || option->get_group() != group) continue;
      std::string value = option->get_default_str();
      if (IsFlag(*option)) value = "false";
      if (!value.empty()) value = absl::StrCat("`", value, "`");
      absl::StrAppend(&rows, "| `", NameOf(*option), "` | ", value, " | ",
                      option->get_description(), " |\n");
    }
    if (rows.empty()) continue;
    absl::StrAppend(&text, "\n## ", group, "\n\n| setting | default | |\n|---|---|---|\n", rows);
  }
  return text;
}

}  // namespace photon
