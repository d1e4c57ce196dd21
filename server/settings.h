// The settings of a program, from four places: a flag --max-rows, before the environment's
// PHOTON_MAX_ROWS, before `max-rows = 64` in the file that --config names, before the default.
//
// CLI11 knows what there is to set, converts values and writes the help. Which value counts, where
// it comes from and what is wrong in all of these places together is decided here: CLI11 puts files
// before the environment, ignores variables that it does not know, and ends at the first problem.
#pragma once

#include <CLI/App.hpp>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace photon {

class Settings {
 public:
  // Where a value comes from.
  enum class Source { kDefault, kFile, kEnvironment, kFlag };

  // The settings are the options of `app` that have an environment name, all of them long. Adds
  // --config, --print-config and a hidden --print-reference.
  explicit Settings(CLI::App* app);

  // Reads all four places into what the options are bound to. The result has every problem.
  // `environment` has entries of other programs, too.
  std::vector<std::string> Read(const std::vector<std::string>& arguments,
                                const std::map<std::string, std::string>& environment);

  // Somebody has set it, and to something else than its default.
  bool is_changed(const std::string& name) const;
  // How messages call a setting: "--max-rows", "PHOTON_MAX_ROWS", "photon.toml:3: max-rows".
  std::string CalledBy(const std::string& name) const;

  bool prints_config() const { return print_config_; }
  bool prints_reference() const { return print_reference_; }

  // What is in force, as a file that --config takes, each value with where it comes from.
  std::string Print() const;
  // A table of all settings for each group, in Markdown.
  std::string Reference() const;

 private:
  struct Given {
    std::string value;
    Source source = Source::kDefault;
    std::string called;  // as CalledBy has it
  };
  using Layer = std::map<std::string, Given>;  // by the setting's name

  bool IsSetting(const CLI::Option* option) const { return !option->get_envname().empty(); }
  CLI::Option* Find(const std::string& name) const;
  std::string Unknown(const std::string& called, std::string_view what,
                      const std::string& name) const;
  Layer ReadArguments(const std::vector<std::string>& arguments);
  Layer ReadEnvironment(const std::map<std::string, std::string>& environment);
  Layer ReadFile(const std::string& path);
  void Apply(const std::string& name, const Given& given);

  CLI::App* const app_;
  std::string config_path_;
  bool print_config_ = false;
  bool print_reference_ = false;
  Layer given_;  // what counts
  std::vector<std::string> problems_;
};

// The environment of this process.
std::map<std::string, std::string> ProcessEnvironment();

}  // namespace photon
