// What the subcommands of `photon` do. Each returns the exit code of the program: kSuccess,
// kFailed, or kInterrupted; what went wrong is on `err`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/terminal.h"

namespace photon {

// Fields that are empty leave the choice to the server.
struct ParameterOptions {
  v1::GenerationMode mode = v1::GENERATION_MODE_UNSPECIFIED;
  std::optional<int32_t> max_tokens;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_ids;
  bool ignore_eos = false;
  v1::Priority priority = v1::PRIORITY_UNSPECIFIED;

  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<uint64_t> seed;

  bool logprobs = false;
  std::optional<int32_t> top_logprobs;  // how many alternatives; implies logprobs

  std::optional<int32_t> n;
  std::optional<v1::MajorityVote> vote;
  bool best = false;         // the best of n
  bool only_result = false;  // of a vote or the best of n: leave the samples out
};

// How the output of one or many samples is written.
struct OutputOptions {
  bool ids = false;    // token ids, not text
  bool json = false;   // each message of the stream as a line of JSON
  bool quiet = false;  // no summary on `err`
};

struct GenerateOptions {
  std::string prompt;
  std::vector<int32_t> prompt_ids;  // replaces `prompt`
  bool echo = false;                // write the prompt before its continuation
  ParameterOptions parameters;
  OutputOptions output;
};

// One sample streams as it comes, with log-probabilities as a line per token: id, log-probability,
// alternatives. Of several each is written when it has ended.
int RunGenerate(Client& client, const GenerateOptions& options, const Terminal& terminal);

struct BatchOptions {
  std::vector<std::string> prompts;
  ParameterOptions parameters;
  OutputOptions output;
};

int RunBatch(Client& client, const BatchOptions& options, const Terminal& terminal);

struct AskOptions {
  std::string document_id;              // or:
  std::optional<std::string> document;  // a text, kept for as long as the questions take
  std::vector<std::string> questions;
  ParameterOptions parameters;
  OutputOptions output;
};

int RunAsk(Client& client, const AskOptions& options, const Terminal& terminal);

struct CreateDocumentOptions {
  std::string text;
  std::string name;
  std::optional<int32_t> ttl_s;
  bool json = false;
};

// Writes the id of the new document, and what it holds on `err`.
int RunCreateDocument(Client& client, const CreateDocumentOptions& options,
                      const Terminal& terminal);
int RunGetDocument(Client& client, const std::string& id, bool json, const Terminal& terminal);
int RunListDocuments(Client& client, bool json, const Terminal& terminal);
int RunExtendDocument(Client& client, const std::string& id, int32_t ttl_s, bool json,
                      const Terminal& terminal);
int RunDeleteDocument(Client& client, const std::string& id, const Terminal& terminal);

int RunEstimate(Client& client, const v1::EstimateCostRequest& request, bool json,
                const Terminal& terminal);

int RunInfo(Client& client, bool json, const Terminal& terminal);

// Writes ids with a space between them.
int RunTokenize(Client& client, const std::string& text, bool add_bos, const Terminal& terminal);

int RunDetokenize(Client& client, const std::vector<int32_t>& ids, const Terminal& terminal);

// Writes the status by its name in the health protocol. With `wait`, until it is SERVING.
int RunHealth(Client& client, const std::string& service, bool wait, const Terminal& terminal);

}  // namespace photon
