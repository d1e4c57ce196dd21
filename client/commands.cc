#include "client/commands.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/text.h"

namespace photon {
namespace {

int Fail(const absl::Status& status, const Terminal& terminal) {
  if (absl::IsCancelled(status) && terminal.interrupted.stop_requested()) {
    terminal.err << "photon: interrupted\n";
    return kInterrupted;
  }
  terminal.err << "photon: " << absl::StatusCodeToString(status.code()) << ": "
               << std::string(status.message()) << "\n";
  return kFailed;
}

v1::GenerateRequest ToRequest(const GenerateOptions& options) {
  v1::GenerateRequest request;
  if (options.prompt_ids.empty()) {
    request.mutable_prompt()->set_text(options.prompt);
  } else {
    auto& ids = *request.mutable_prompt()->mutable_token_ids()->mutable_ids();
    ids.Assign(options.prompt_ids.begin(), options.prompt_ids.end());
  }
  v1::GenerationParameters& parameters = *request.mutable_parameters();
  parameters.set_mode(options.mode);
  if (options.max_tokens) parameters.set_max_tokens(*options.max_tokens);
  parameters.set_logprobs(options.logprobs);
  if (options.top_logprobs) parameters.set_top_logprobs(*options.top_logprobs);

  v1::SamplingParameters& sampling = *parameters.mutable_sampling();
  if (options.temperature) sampling.set_temperature(*options.temperature);
  if (options.top_k) sampling.set_top_k(*options.top_k);
  if (options.top_p) sampling.set_top_p(*options.top_p);
  if (options.min_p) sampling.set_min_p(*options.min_p);
  if (options.seed) sampling.set_seed(*options.seed);

  v1::StopConditions& stop = *parameters.mutable_stop();
  stop.mutable_strings()->Assign(options.stop.begin(), options.stop.end());
  stop.mutable_token_ids()->Assign(options.stop_ids.begin(), options.stop_ids.end());
  stop.set_ignore_eos(options.ignore_eos);
  return request;
}

// "17 -0.42" or, with alternatives, "17 -0.42  17:-0.42 9:-1.7".
std::string LogprobLine(int32_t id, const v1::TokenLogprobs& logprobs) {
  std::string line = absl::StrCat(id, " ", logprobs.logprob());
  const char* separator = "  ";
  for (const v1::TokenLogprob& other : logprobs.top()) {
    absl::StrAppend(&line, separator, other.token_id(), ":", other.logprob());
    separator = " ";
  }
  return line + "\n";
}

std::string ResponseText(const v1::GenerateResponse& response, const GenerateOptions& options) {
  if (options.json) return JsonLine(response);
  std::string text;
  if (options.logprobs || options.top_logprobs) {
    for (int i = 0; i < response.logprobs_size(); ++i) {
      text += LogprobLine(response.token_ids(i), response.logprobs(i));
    }
  } else if (options.ids) {
    for (const int32_t id : response.token_ids()) absl::StrAppend(&text, id, " ");
  } else {
    text = response.text();
  }
  return text;
}

}  // namespace

int RunGenerate(Client& client, const GenerateOptions& options, const Terminal& terminal) {
  if (options.echo) terminal.out << options.prompt << std::flush;
  bool line_open = options.echo && !options.prompt.empty();
  const absl::StatusOr<v1::GenerationResult> result = client.Generate(
      ToRequest(options),
      [&](const v1::GenerateResponse& response) {
        const std::string text = ResponseText(response, options);
        if (text.empty()) return;
        line_open = text.back() != '\n';
        terminal.out << text << std::flush;
      },
      terminal.interrupted);
  if (line_open) terminal.out << std::endl;
  if (!result.ok()) return Fail(result.status(), terminal);
  if (!options.quiet) terminal.err << ResultText(*result);
  return kSuccess;
}

int RunInfo(Client& client, bool json, const Terminal& terminal) {
  const auto info = client.GetModelInfo();
  if (!info.ok()) return Fail(info.status(), terminal);
  terminal.out << (json ? JsonLine(*info) : ModelInfoText(*info));
  return kSuccess;
}

int RunTokenize(Client& client, const std::string& text, bool add_bos, const Terminal& terminal) {
  v1::TokenizeRequest request;
  request.set_text(text);
  request.set_add_bos(add_bos);
  const auto response = client.Tokenize(request);
  if (!response.ok()) return Fail(response.status(), terminal);
  terminal.out << absl::StrJoin(response->token_ids(), " ") << "\n";
  return kSuccess;
}

int RunDetokenize(Client& client, const std::vector<int32_t>& ids, const Terminal& terminal) {
  v1::DetokenizeRequest request;
  request.mutable_token_ids()->Assign(ids.begin(), ids.end());
  const auto response = client.Detokenize(request);
  if (!response.ok()) return Fail(response.status(), terminal);
  terminal.out << response->text() << "\n";
  return kSuccess;
}

int RunHealth(Client& client, const std::string& service, bool wait, const Terminal& terminal) {
  using grpc::health::v1::HealthCheckResponse;
  auto status = HealthCheckResponse::SERVING;
  if (wait) {
    const absl::Status served = client.WaitUntilServing(service, terminal.interrupted);
    if (!served.ok()) return Fail(served, terminal);
  } else {
    const auto checked = client.CheckHealth(service);
    if (!checked.ok()) return Fail(checked.status(), terminal);
    status = *checked;
  }
  terminal.out << HealthCheckResponse::ServingStatus_Name(status) << "\n";
  return status == HealthCheckResponse::SERVING ? kSuccess : kFailed;
}

}  // namespace photon
