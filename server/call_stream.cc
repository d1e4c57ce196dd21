#include "server/call_stream.h"

#include <grpcpp/alarm.h>

#include <chrono>
#include <functional>
#include <utility>

#include "photon/v1/document.pb.h"
#include "server/auth/call_guard.h"
#include "server/byte_buffer_codec.h"
#include "server/grpc_status.h"
#include "server/request_id.h"
#include "server/request_log.h"

namespace photon {
namespace {

// What a client should wait before it tries a full server again.
constexpr char kRetryPushbackMs[] = "1000";

// Runs `work` soon on one of gRPC's threads.
void RunOnGrpcThread(std::function<void()> work) {
  auto* alarm = new grpc::Alarm;
  alarm->Set(std::chrono::system_clock::now(), [alarm, work = std::move(work)](bool) {
    work();
    delete alarm;
  });
}

template <typename Response>
Response WithContent(CallOutput::Message& message) {
  Response response;
  if (message.error.ok()) {
    response.mutable_output()->Swap(&message.output);
  } else {
    response.mutable_error()->set_code(static_cast<int>(message.error.code()));
    response.mutable_error()->set_message(std::string(message.error.message()));
  }
  return response;
}

}  // namespace

grpc::ByteBuffer EncodeGenerateResponse(CallOutput::Message message) {
  return SerializeMessage(message.output);
}

grpc::ByteBuffer EncodeGenerateBatchResponse(CallOutput::Message message) {
  auto response = WithContent<v1::GenerateBatchResponse>(message);
  response.set_prompt_index(static_cast<int32_t>(message.query));
  return SerializeMessage(response);
}

grpc::ByteBuffer EncodeAskResponse(CallOutput::Message message) {
  auto response = WithContent<v1::AskResponse>(message);
  response.set_question_index(static_cast<int32_t>(message.query));
  return SerializeMessage(response);
}

TimePoint DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return TimePoint::max();
  return std::chrono::steady_clock::now() +
         std::chrono::duration_cast<Duration>(deadline - std::chrono::system_clock::now());
}

absl::Status WhyTheClientLeft(const grpc::CallbackServerContext& context) {
  // gRPC also cancels calls whose deadline has passed.
  if (std::chrono::system_clock::now() >= context.deadline()) {
    return absl::DeadlineExceededError("the deadline passed");
  }
  return absl::CancelledError("the client left");
}

void AddRetryPushback(grpc::CallbackServerContext& context, const absl::Status& status) {
  if (!absl::IsResourceExhausted(status)) return;
  context.AddTrailingMetadata("grpc-retry-pushback-ms", kRetryPushbackMs);
}

CallStream::CallStream(Call call) : call_(std::move(call)) {}

CallStream* CallStream::Reject(Call call, const absl::Status& error) {
  auto* stream = new CallStream(std::move(call));
  stream->self_.reset(stream);
  stream->status_ = error;
  stream->finishing_ = true;
  ReturnRequestId(stream->call_.context, Answer::kErrorAlone);
  stream->Finish(ToGrpcStatus(error));
  return stream;
}

CallStream* CallStream::Start(Call call, const CallEnvironment& environment,
                              std::shared_ptr<ServedModel> model,
                              std::vector<absl::StatusOr<Query>> queries, Encoder encoder) {
  auto* stream = new CallStream(std::move(call));
  stream->self_.reset(stream);
  stream->encoder_ = encoder;
  GenerationCall::Settings settings;
  settings.deadline = DeadlineOf(*stream->call_.context);
  settings.caller = CallOf(*stream->call_.context).caller();
  settings.on_change = [weak = std::weak_ptr<CallStream>(stream->self_)] {
    if (const std::shared_ptr<CallStream> self = weak.lock()) self->Advance();
  };
  settings.run_soon = RunOnGrpcThread;
  // Changes that come before the assignment find nothing; Submit ends with one.
  auto generation = GenerationCall::Create(environment, std::move(model), std::move(queries),
                                           std::move(settings));
  stream->generation_ = generation;
  generation->Submit();
  return stream;
}

void CallStream::Advance() {
  std::unique_lock lock(mutex_);
  if (writing_ || finishing_) return;
  GenerationCall::Reading reading = generation_->Next();
  if (!reading.message.has_value() && !reading.end.has_value()) return;
  if (reading.message.has_value()) {
    if (!started_) ReturnRequestId(call_.context, Answer::kResponse);
    writing_ = true;
    started_ = true;
    written_sequence_ = reading.message->sequence;
  }
  const bool finish = reading.end.has_value();
  finishing_ = finish;
  if (finish) {
    status_ = *reading.end;
    // Coming again helps those who were not let in.
    if (!started_) {
      AddRetryPushback(*call_.context, status_);
      ReturnRequestId(call_.context, Answer::kErrorAlone);
    }
  }
  const grpc::Status status = ToGrpcStatus(status_);
  // gRPC may call back from inside.
  lock.unlock();
  if (!reading.message.has_value()) return Finish(status);
  write_buffer_ = encoder_(*std::move(reading.message));
  if (finish) {
    StartWriteAndFinish(&write_buffer_, grpc::WriteOptions(), status);
  } else {
    StartWrite(&write_buffer_);
  }
}

void CallStream::OnWriteDone(bool ok) {
  std::optional<SequenceIndex> sequence;
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    sequence = written_sequence_;
  }
  if (sequence.has_value()) generation_->Written(*sequence);
  if (!ok) generation_->Leave(WhyTheClientLeft(*call_.context));
  Advance();
}

void CallStream::OnCancel() {
  if (generation_ != nullptr) generation_->Leave(WhyTheClientLeft(*call_.context));
}

void CallStream::OnDone() {
  if (generation_ != nullptr) generation_->Close();
  LogCall();
  // May destroy this object.
  std::shared_ptr<CallStream>(std::move(self_)).reset();
}

void CallStream::LogCall() const {
  LogRequest(call_.name, status_, generation_ == nullptr ? std::nullopt : generation_->Summary());
}

}  // namespace photon
