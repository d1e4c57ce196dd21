// What the subcommands of `photon` do. Each returns the exit code of the program: kSuccess,
// kFailed, or kInterrupted; what went wrong is on `err`.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <stop_token>
#include <string>
#include <vector>

#include "client/client.h"

namespace photon {

inline constexpr int kSuccess = 0;
inline constexpr int kFailed = 1;         // the call failed, or the service is not serving
inline constexpr int kUsage = 2;          // the command line makes no sense
inline constexpr int kInterrupted = 130;  // Ctrl-C, as shells report it

// Where a command writes: results to `out`, everything about them to `err`.
struct Terminal {
  std::ostream& out;
  std::ostream& err;
  std::stop_token interrupted;
};

// Fields that are empty leave the choice to the server.
struct GenerateOptions {
  std::string prompt;
  std::vector<int32_t> prompt_ids;  // replaces `prompt`
  bool echo = false;                // write the prompt before its continuation

  v1::GenerationMode mode = v1::GENERATION_MODE_UNSPECIFIED;
  std::optional<int32_t> max_tokens;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_ids;
  bool ignore_eos = false;

  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<uint64_t> seed;

  bool ids = false;                     // write token ids, not text
  bool logprobs = false;                // write a line per token: id, log-probability, alternatives
  std::optional<int32_t> top_logprobs;  // how many alternatives; implies logprobs
  bool json = false;                    // write each message of the stream as a line of JSON
  bool quiet = false;                   // no summary on `err`
};

int RunGenerate(Client& client, const GenerateOptions& options, const Terminal& terminal);

int RunInfo(Client& client, bool json, const Terminal& terminal);

// Writes ids with a space between them.
int RunTokenize(Client& client, const std::string& text, bool add_bos, const Terminal& terminal);

int RunDetokenize(Client& client, const std::vector<int32_t>& ids, const Terminal& terminal);

// Writes the status by its name in the health protocol. With `wait`, until it is SERVING.
int RunHealth(Client& client, const std::string& service, bool wait, const Terminal& terminal);

}  // namespace photon
