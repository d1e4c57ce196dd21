// Commands that generate: generate, batch, ask.
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/commands.h"
#include "client/text.h"

namespace photon {
namespace {

v1::GenerationParameters ToProto(const ParameterOptions& options) {
  v1::GenerationParameters parameters;
  parameters.set_mode(options.mode);
  if (options.max_tokens) parameters.set_max_tokens(*options.max_tokens);
  parameters.set_logprobs(options.logprobs);
  if (options.top_logprobs) parameters.set_top_logprobs(*options.top_logprobs);
  parameters.set_priority(options.priority);
  if (options.n) parameters.set_n(*options.n);

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

  if (options.vote) *parameters.mutable_integration()->mutable_majority_vote() = *options.vote;
  if (options.best) parameters.mutable_integration()->mutable_best_of_n();
  if (options.only_result) parameters.mutable_integration()->set_omit_samples(true);
  return parameters;
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

std::string ResponseText(const v1::GenerateResponse& response, const OutputOptions& options) {
  std::string text;
  if (!response.logprobs().empty()) {
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

// Writes what comes mixed: each sample under a line that names it, when it has ended, and what was
// made of a query's samples.
class SamplePrinter {
 public:
  // `query` is what a prompt or question is called; empty: there is only one.
  SamplePrinter(std::string query, const ParameterOptions& parameters, const OutputOptions& options,
                const Terminal& terminal)
      : query_(std::move(query)),
        many_samples_(parameters.n.value_or(1) > 1),
        options_(options),
        terminal_(terminal) {}

  void Print(int query, const v1::GenerateResponse& response) {
    if (response.has_integration()) return PrintIntegration(query, response.integration());
    const std::pair key(query, response.sample_index());
    std::string& text = texts_[key];
    text += ResponseText(response, options_);
    if (!response.has_result()) return;
    PrintText(Name(query, response.sample_index()), text);
    texts_.erase(key);
    if (!options_.quiet) terminal_.err << ResultText(response.result());
  }

  void PrintError(int query, const v1::Error& error) {
    failed_ = true;
    const absl::Status status(static_cast<absl::StatusCode>(error.code()), error.message());
    terminal_.err << "photon: " << query_ << " " << query << ": " << status.ToString() << "\n";
  }

  // A query failed alone.
  bool failed() const { return failed_; }

 private:
  std::string Name(int query, int sample) const {
    std::string name = query_.empty() ? "" : absl::StrCat(query_, " ", query);
    if (many_samples_) absl::StrAppend(&name, name.empty() ? "" : ", ", "sample ", sample);
    return name;
  }

  void PrintText(const std::string& name, const std::string& text) {
    if (!name.empty()) terminal_.out << "[" << name << "]\n";
    terminal_.out << text << (text.ends_with('\n') ? "" : "\n") << std::flush;
  }

  void PrintIntegration(int query, const v1::IntegrationResult& integration) {
    if (!options_.quiet) terminal_.err << IntegrationText(integration);
    const std::string name =
        query_.empty() ? "result" : absl::StrCat(query_, " ", query, ", result");
    if (!integration.has_sample_index()) {
      failed_ = true;
      terminal_.err << "photon: " << name << ": no answer\n";
      return;
    }
    PrintText(name, integration.answers().empty() ? integration.text() : integration.answer());
  }

  const std::string query_;
  const bool many_samples_;
  const OutputOptions& options_;
  const Terminal& terminal_;
  std::map<std::pair<int, int>, std::string> texts_;  // of samples that have not ended
  bool failed_ = false;
};

int GenerateOne(Client& client, const v1::GenerateRequest& request, const GenerateOptions& options,
                const Terminal& terminal) {
  if (options.echo) terminal.out << options.prompt << std::flush;
  bool line_open = options.echo && !options.prompt.empty();
  const absl::StatusOr<v1::GenerationResult> result = client.Generate(
      request,
      [&](const v1::GenerateResponse& response) {
        const std::string text =
            options.output.json ? JsonLine(response) : ResponseText(response, options.output);
        if (text.empty()) return;
        line_open = text.back() != '\n';
        terminal.out << text << std::flush;
      },
      terminal.interrupted);
  if (line_open) terminal.out << std::endl;
  if (!result.ok()) return Fail(result.status(), terminal);
  if (!options.output.quiet) terminal.err << ResultText(*result);
  return kSuccess;
}

}  // namespace

int RunGenerate(Client& client, const GenerateOptions& options, const Terminal& terminal) {
  v1::GenerateRequest request;
  if (options.prompt_ids.empty()) {
    request.mutable_prompt()->set_text(options.prompt);
  } else {
    auto& ids = *request.mutable_prompt()->mutable_token_ids()->mutable_ids();
    ids.Assign(options.prompt_ids.begin(), options.prompt_ids.end());
  }
  *request.mutable_parameters() = ToProto(options.parameters);
  if (options.parameters.n.value_or(1) == 1 && !request.parameters().has_integration()) {
    return GenerateOne(client, request, options, terminal);
  }
  SamplePrinter printer("", options.parameters, options.output, terminal);
  const absl::Status status = client.GenerateSamples(
      request,
      [&](const v1::GenerateResponse& response) {
        if (options.output.json) {
          terminal.out << JsonLine(response) << std::flush;
        } else {
          printer.Print(0, response);
        }
      },
      terminal.interrupted);
  if (!status.ok()) return Fail(status, terminal);
  return printer.failed() ? kFailed : kSuccess;
}

int RunBatch(Client& client, const BatchOptions& options, const Terminal& terminal) {
  v1::GenerateBatchRequest request;
  for (const std::string& prompt : options.prompts) request.add_prompts()->set_text(prompt);
  *request.mutable_parameters() = ToProto(options.parameters);
  SamplePrinter printer("prompt", options.parameters, options.output, terminal);
  const absl::Status status = client.GenerateBatch(
      request,
      [&](const v1::GenerateBatchResponse& response) {
        if (options.output.json) terminal.out << JsonLine(response) << std::flush;
        if (response.has_error()) {
          printer.PrintError(response.prompt_index(), response.error());
        } else if (!options.output.json) {
          printer.Print(response.prompt_index(), response.output());
        }
      },
      terminal.interrupted);
  if (!status.ok()) return Fail(status, terminal);
  return printer.failed() ? kFailed : kSuccess;
}

int RunAsk(Client& client, const AskOptions& options, const Terminal& terminal) {
  v1::AskRequest request;
  request.set_document_id(options.document_id);
  if (options.document.has_value()) {
    const auto document = client.CreateDocument({}, *options.document, terminal.interrupted);
    if (!document.ok()) return Fail(document.status(), terminal);
    request.set_document_id(document->id());
    if (!options.output.quiet) terminal.err << DocumentText(*document);
  }
  for (const std::string& question : options.questions) request.add_questions()->set_text(question);
  *request.mutable_parameters() = ToProto(options.parameters);
  SamplePrinter printer("question", options.parameters, options.output, terminal);
  absl::Status status = client.Ask(
      request,
      [&](const v1::AskResponse& response) {
        if (options.output.json) terminal.out << JsonLine(response) << std::flush;
        if (response.has_error()) {
          printer.PrintError(response.question_index(), response.error());
        } else if (!options.output.json) {
          printer.Print(response.question_index(), response.output());
        }
      },
      terminal.interrupted);
  if (options.document.has_value()) status.Update(client.DeleteDocument(request.document_id()));
  if (!status.ok()) return Fail(status, terminal);
  return printer.failed() ? kFailed : kSuccess;
}

}  // namespace photon
