// Generation parameters as named JSON values: what completion requests on HTTP and the tensors and
// parameters of KServe's protocol have in common.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "photon/v1/generation.pb.h"
#include "server/options.h"

namespace photon {

// For one request. A value of the wrong type or range is a problem with the name of its field.
class GenerationFields {
 public:
  using Json = nlohmann::json;

  explicit GenerationFields(const RequestLimits& limits) : limits_(limits) {}

  // Reads a field that all have: max_tokens, temperature, top_p, top_k, min_p, n, stop,
  // stop_token_ids, seed, mode, priority ("low", "normal" or "high"), ignore_eos or timeout_ms.
  // Null counts as left out. False: it is none of these.
  bool Read(std::string_view name, const Json& value);

  v1::GenerationParameters& parameters() { return parameters_; }
  int n() const { return n_; }  // not in the parameters: who reads decides
  std::optional<std::chrono::milliseconds> timeout() const { return timeout_; }

  // --- For fields that only some have. Nothing: the problem has been noted. ---

  // Numbers without a fraction count, however they are written.
  std::optional<int64_t> Integer(std::string_view name, const Json& value, int64_t least,
                                 int64_t most);
  std::optional<bool> Boolean(std::string_view name, const Json& value);

  void Expect(std::string_view name, const char* what) { Fail(name, "expected ", what); }
  template <typename... Parts>
  void Fail(std::string_view name, const Parts&... parts) {
    AddProblem(name, absl::StrCat(parts...));
  }

  // Every problem, up to a bound: "top_k: expected a whole number in [0, 2147483647]; stop: ...".
  absl::Status status() const;

 private:
  using Reader = void (GenerationFields::*)(std::string_view, const Json&);

  void AddProblem(std::string_view name, std::string problem);
  std::optional<float> Number(std::string_view name, const Json& value);

  void MaxTokens(std::string_view name, const Json& value);
  void Temperature(std::string_view name, const Json& value);
  void TopP(std::string_view name, const Json& value);
  void TopK(std::string_view name, const Json& value);
  void MinP(std::string_view name, const Json& value);
  void N(std::string_view name, const Json& value);
  void Stop(std::string_view name, const Json& value);
  void StopTokenIds(std::string_view name, const Json& value);
  void Seed(std::string_view name, const Json& value);
  void Mode(std::string_view name, const Json& value);
  void PriorityClass(std::string_view name, const Json& value);
  void IgnoreEos(std::string_view name, const Json& value);
  void TimeoutMs(std::string_view name, const Json& value);

  const RequestLimits& limits_;
  v1::GenerationParameters parameters_;
  int n_ = 1;
  std::optional<std::chrono::milliseconds> timeout_;
  std::vector<std::string> problems_;
};

// The words of photon.v1's errors in those of such fields: "parameters.sampling.top_p" is "top_p".
// `prompts` is what the list of prompts is called.
absl::Status InGenerationFields(const absl::Status& error, std::string_view prompts);

}  // namespace photon
