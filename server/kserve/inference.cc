#include "server/kserve/inference.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/request_id.h"

namespace photon {
namespace {

// The request's own id, if it can stand in a line of the log.
std::string IdOf(const inference::ModelInferRequest& request, const std::string& call_id) {
  const std::string& id = request.id();
  const bool is_line =
      std::all_of(id.begin(), id.end(), [](char c) { return c >= ' ' && c < 127; });
  return id.empty() || id.size() > 128 || !is_line ? call_id : id;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Inference>> Inference::Create(
    const Environment& environment, const inference::ModelInferRequest& request,
    Settings settings) {
  settings.name.id = IdOf(request, settings.name.id);
  const auto refuse = [&](const absl::Status& error) {
    LogRequest(settings.name, error, std::nullopt);
    return error;
  };
  ModelLease model = environment.calls.models->Enter();
  auto parsed =
      ParseInferenceRequest(request, model->facts().name, environment.limits, settings.may_stream);
  if (!parsed.ok()) return refuse(parsed.status());
  auto queries = InferenceQueries(*parsed, model->facts(), environment.limits, RandomBits());
  if (!queries.ok()) return refuse(queries.status());
  return std::unique_ptr<Inference>(new Inference(environment, std::move(model), *std::move(parsed),
                                                  *std::move(queries), std::move(settings)));
}

Inference::Inference(const Environment& environment, ModelLease model, InferenceRequest request,
                     std::vector<absl::StatusOr<Query>> queries, Settings settings)
    : model_(std::move(model)),
      max_response_bytes_(environment.max_response_bytes),
      name_(std::move(settings.name)),
      response_(std::move(request), model_->facts().name) {
  GenerationCall::Settings call_settings;
  call_settings.deadline = settings.deadline;
  if (const auto timeout = response_.request().timeout) {
    call_settings.deadline =
        std::min(call_settings.deadline, std::chrono::steady_clock::now() + *timeout);
  }
  call_settings.caller = std::move(settings.caller);
  call_settings.on_change = std::move(settings.on_change);
  call_ = GenerationCall::Create(environment.calls, model_.model(), std::move(queries),
                                 std::move(call_settings));
  abortable_ = environment.requests->Add(name_.id, [weak = std::weak_ptr(call_)] {
    const std::shared_ptr<GenerationCall> call = weak.lock();
    if (call != nullptr) call->Leave(absl::CancelledError("the request was aborted"));
  });
}

Inference::~Inference() {
  abortable_.reset();
  call_->Leave(absl::CancelledError("nobody reads"));
  call_->Close();
  LogRequest(name_, status_, call_->Summary());
}

Inference::Reading Inference::Next() {
  Reading reading = response_.request().stream ? NextPiece() : NextWhole();
  if (reading.end.has_value()) status_ = *reading.end;
  return reading;
}

Inference::Reading Inference::NextPiece() {
  GenerationCall::Reading reading = call_->Next();
  Reading result{.end = std::move(reading.end)};
  if (reading.message.has_value()) {
    in_flight_ = reading.message->sequence;
    const bool last = result.end.has_value() && result.end->ok();
    result.response = response_.Piece(*std::move(reading.message), last);
  }
  return result;
}

Inference::Reading Inference::NextWhole() {
  for (;;) {
    GenerationCall::Reading reading = call_->Next();
    if (reading.message.has_value()) {
      const std::optional<SequenceIndex> sequence = reading.message->sequence;
      response_.Add(*std::move(reading.message));
      if (sequence.has_value()) call_->Written(*sequence);
      if (response_.bytes() > max_response_bytes_) {
        return {.end = absl::InvalidArgumentError(
                    absl::StrCat("max_tokens: a response of more than ", max_response_bytes_,
                                 " bytes has to be streamed, with ModelStreamInfer"))};
      }
    }
    if (reading.end.has_value()) {
      Reading result{.end = std::move(reading.end)};
      if (result.end->ok()) result.response = response_.Whole();
      return result;
    }
    if (!reading.message.has_value()) return {};
  }
}

void Inference::Written() {
  if (const auto sequence = std::exchange(in_flight_, std::nullopt)) call_->Written(*sequence);
}

}  // namespace photon
