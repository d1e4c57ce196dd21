#include "server/auth/keys_command.h"

#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "server/auth/api_keys.h"

namespace photon {
namespace {

constexpr int kSuccess = 0;
constexpr int kProblems = 1;
constexpr int kUsage = 2;

// The line goes to standard output and the key to standard error:
//   photon-server keys create alice >> keys
int Create(ApiKey key) {
  if (!IsCallerName(key.name)) {
    std::cerr << "NAME: expected 1 to 64 letters, digits or any of ._-@\n";
    return kUsage;
  }
  const std::string secret = NewApiKey();
  key.hash = HashOf(secret);
  std::cout << ApiKeyLine(key) << std::endl;
  std::cerr << "The key of " << key.name << ", which is not kept anywhere:\n"
            << secret << std::endl;
  return kSuccess;
}

int Check(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::cerr << path << ": cannot be read\n";
    return kProblems;
  }
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto keys = ParseApiKeys(text);
  if (!keys.ok()) {
    std::cerr << keys.status().message() << std::endl;
    return kProblems;
  }
  std::cout << keys->size() << " keys" << std::endl;
  return kSuccess;
}

}  // namespace

int RunKeysCommand(int argc, const char* const* argv) {
  CLI::App app("Makes API keys for --api-keys, and checks files of them.", "photon-server keys");
  app.require_subcommand(1);

  CLI::App* create = app.add_subcommand(
      "create", "Make a key: the line for the file on standard output, the key on standard error");
  ApiKey key;
  create->add_option("name", key.name, "Whose it is; keys of one name share its limits")
      ->required();
  create->add_option("--requests-per-minute", key.limits.requests_per_minute)
      ->check(CLI::PositiveNumber);
  create->add_option("--max-concurrent-requests", key.limits.max_concurrent_requests)
      ->check(CLI::PositiveNumber);
  create->add_option("--tokens-per-minute", key.limits.tokens_per_minute, "Prompt and output")
      ->check(CLI::PositiveNumber);
  std::string priority(PriorityName(key.limits.max_priority));
  create->add_option("--max-priority", priority)
      ->check(CLI::IsMember({"low", "normal", "high"}))
      ->capture_default_str();
  create->add_flag("--admin", key.limits.admin, "Allow AdminService");

  CLI::App* check = app.add_subcommand("check", "Name every problem of a file");
  std::string path;
  check->add_option("file", path)->required();

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kSuccess : kUsage;
  }
  if (*check) return Check(path);
  key.limits.max_priority = *ParsePriority(priority);
  return Create(std::move(key));
}

}  // namespace photon
