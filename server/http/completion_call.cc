#include "server/http/completion_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/http/api_error.h"

namespace photon {
namespace {

// Events are gathered up to this size and written together.
constexpr size_t kMaxPartBytes = 16 << 10;

}  // namespace

CompletionCall::CompletionCall(std::shared_ptr<GenerationCall> call, CompletionResponse response,
                               Settings settings)
    : call_(std::move(call)), response_(std::move(response)), settings_(std::move(settings)) {
  call_->Submit();
}

HttpPart CompletionCall::Next() {
  if (ended_) return {};
  return settings_.stream ? NextEvents() : NextWhole();
}

HttpPart CompletionCall::NextEvents() {
  for (const SequenceIndex sequence : std::exchange(in_flight_, {})) call_->Written(sequence);
  HttpPart part;
  while (part.body.size() < kMaxPartBytes) {
    GenerationCall::Reading reading = call_->Next();
    if (reading.message.has_value()) {
      if (reading.message->sequence.has_value()) in_flight_.push_back(*reading.message->sequence);
      part.body += response_.Event(*std::move(reading.message));
    }
    if (reading.end.has_value()) {
      ended_ = true;
      status_ = *reading.end;
      // Until something has been said, an error has a status code of its own.
      if (!status_.ok() && !head_given_ && part.body.empty()) return Failure(status_);
      part.body += status_.ok() ? response_.LastEvents() : CompletionResponse::ErrorEvent(status_);
      part.end = true;
      break;
    }
    if (!reading.message.has_value()) break;
  }
  if (!part.empty() && !std::exchange(head_given_, true)) {
    part.head = HttpHead{.headers = {{"content-type", "text/event-stream"},
                                     {"cache-control", "no-cache"},
                                     {"x-accel-buffering", "no"}}};
  }
  return part;
}

HttpPart CompletionCall::NextWhole() {
  for (;;) {
    GenerationCall::Reading reading = call_->Next();
    if (reading.message.has_value()) {
      const std::optional<SequenceIndex> sequence = reading.message->sequence;
      response_.Add(*std::move(reading.message));
      if (sequence.has_value()) call_->Written(*sequence);
      if (response_.bytes() > settings_.max_response_bytes) {
        call_->Leave(absl::InvalidArgumentError(absl::StrCat("stream: a response of more than ",
                                                             settings_.max_response_bytes,
                                                             " bytes has to be streamed")));
        continue;
      }
    }
    if (reading.end.has_value()) {
      ended_ = true;
      status_ = *reading.end;
      if (!status_.ok()) return Failure(status_);
      return {.head = HttpHead{.headers = {{"content-type", "application/json"}}},
              .body = response_.Body(),
              .end = true};
    }
    if (!reading.message.has_value()) return {};
  }
}

HttpPart CompletionCall::Failure(const absl::Status& error) {
  HttpResponse response = ApiErrorResponse(error);
  return {.head = std::move(response.head), .body = std::move(response.body), .end = true};
}

void CompletionCall::OnClosed(bool complete) {
  if (!complete) {
    status_ = absl::CancelledError("the client left");
    call_->Leave(status_);
  }
  call_->Close();
  LogRequest(settings_.name, status_, call_->Summary());
}

}  // namespace photon
