#include "server/call_stream.h"

#include <grpcpp/alarm.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "photon/v1/document.pb.h"
#include "server/auth/call_guard.h"
#include "server/byte_buffer_codec.h"
#include "server/grpc_status.h"

namespace photon {
namespace {

// What a client should wait before it tries a full server again.
constexpr char kRetryPushbackMs[] = "1000";

// Runs `work` soon on one of gRPC's threads.
template <typename Work>
void RunOnGrpcThread(Work work) {
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

void AddRetryPushback(grpc::CallbackServerContext& context, const absl::Status& status) {
  if (!absl::IsResourceExhausted(status)) return;
  context.AddTrailingMetadata("grpc-retry-pushback-ms", kRetryPushbackMs);
}

void CheckThatEachFits(const Scheduler& scheduler, std::vector<absl::StatusOr<Query>>& queries) {
  for (absl::StatusOr<Query>& query : queries) {
    if (!query.ok()) continue;
    if (absl::Status status = scheduler.CheckFits(query->sequence); !status.ok()) query = status;
  }
}

// Keeps the call alive for as long as the scheduler may speak of its sequence.
class CallStream::Listener : public SequenceListener {
 public:
  Listener(std::shared_ptr<CallStream> stream, SequenceIndex index)
      : stream_(std::move(stream)), index_(index) {}

  std::optional<size_t> OnTokens(std::span<const SampledToken> tokens) override {
    return stream_->OnTokens(index_, tokens);
  }
  void OnFinish(SequenceEnd end, const SequenceStats& stats) override {
    stream_->OnFinish(index_, end, stats);
  }

 private:
  const std::shared_ptr<CallStream> stream_;
  const SequenceIndex index_;
};

CallStream::CallStream(Call call) : call_(std::move(call)) {}

CallStream* CallStream::Reject(Call call, const absl::Status& error) {
  auto* stream = new CallStream(std::move(call));
  std::unique_lock lock(stream->mutex_);
  stream->self_.reset(stream);
  stream->status_ = error;
  stream->Advance(std::move(lock));
  return stream;
}

CallStream* CallStream::Start(Call call, const CallEnvironment& environment,
                              std::vector<absl::StatusOr<Query>> queries, Encoder encoder) {
  auto* stream = new CallStream(std::move(call));
  stream->encoder_ = encoder;
  stream->scheduler_ = environment.scheduler;
  {
    std::lock_guard lock(stream->mutex_);
    stream->self_.reset(stream);
    stream->output_.emplace(std::move(queries), *environment.tokenizer,
                            environment.max_unread_bytes);
  }
  stream->Submit();
  return stream;
}

void CallStream::Submit() {
  const TimePoint deadline = DeadlineOf(*call_.context);
  caller_ = CallOf(*call_.context).caller();
  std::vector<Scheduler::Submission> submissions;
  absl::Status allowed;
  {
    std::lock_guard lock(mutex_);
    for (SequenceRequest& request : output_->TakeRequests()) {
      request.deadline = deadline;
      request.tenant = caller_->tenant();
      allowed.Update(caller_->CheckPriority(request.priority));
      auto listener = std::make_unique<Listener>(self_, submissions.size());
      submissions.push_back({std::move(request), std::move(listener)});
    }
  }
  absl::StatusOr<std::vector<SequenceId>> ids = std::vector<SequenceId>();
  if (!allowed.ok()) {
    ids = allowed;
    submissions.clear();
  }
  if (!submissions.empty()) ids = scheduler_->SubmitAll(std::move(submissions));

  std::unique_lock lock(mutex_);
  if (!ids.ok()) {
    AddRetryPushback(*call_.context, ids.status());
    status_ = ids.status();
    return Advance(std::move(lock));
  }
  ids_ = *std::move(ids);
  // What was decided before the ids were known.
  if (client_left_ || !output_->status().ok()) CancelAll();
  for (SequenceIndex i = 0; i < ids_.size(); ++i) {
    if (output_->withdrawn(i)) scheduler_->Cancel(ids_[i]);
    if (output_->paused(i)) scheduler_->Pause(ids_[i]);
  }
  Advance(std::move(lock));
}

std::optional<size_t> CallStream::OnTokens(SequenceIndex index,
                                           std::span<const SampledToken> tokens) {
  std::unique_lock lock(mutex_);
  if (client_left_ || status_.has_value()) return 0;
  const CallOutput::Appended appended = output_->Append(index, tokens);
  if (appended.pause && !ids_.empty()) scheduler_->Pause(ids_[index]);
  Advance(std::move(lock));
  return appended.end;
}

void CallStream::OnFinish(SequenceIndex index, SequenceEnd end, const SequenceStats& stats) {
  caller_->Charge(stats);
  std::unique_lock lock(mutex_);
  const bool was_ok = output_->status().ok();
  if (output_->Finish(index, end, stats)) StartIntegration(index);
  if (was_ok && !output_->status().ok()) CancelAll();
  Advance(std::move(lock));
}

void CallStream::StartIntegration(SequenceIndex index) {
  if (self_ == nullptr) return;  // the call is over: nobody waits for the answer
  RunOnGrpcThread([self = self_, index] { self->RunIntegration(index); });
}

void CallStream::RunIntegration(SequenceIndex index) {
  CallOutput::Integration run;
  {
    std::lock_guard lock(mutex_);
    run = output_->BeginIntegration(index);
  }
  for (EndedSample& sample : run.samples) run.integrator->Add(std::move(sample));
  std::unique_lock lock(mutex_);
  const CallOutput::Integrated integrated = output_->EndIntegration(run.query);
  // Once the call is over the scheduler may be gone, and nobody cares.
  if (self_ == nullptr) return;
  if (!ids_.empty()) {
    for (const SequenceIndex withdrawn : integrated.withdrawn) scheduler_->Cancel(ids_[withdrawn]);
  }
  if (integrated.again) StartIntegration(index);
  Advance(std::move(lock));
}

void CallStream::CancelAll() {
  for (SequenceIndex i = 0; i < ids_.size(); ++i) {
    if (!output_->finished(i)) scheduler_->Cancel(ids_[i]);
  }
}

void CallStream::Advance(std::unique_lock<std::mutex> lock) {
  if (writing_ || finishing_) return;
  if (client_left_) {
    // gRPC also cancels calls whose deadline has passed.
    const bool late = std::chrono::system_clock::now() >= call_.context->deadline();
    status_ = late ? absl::DeadlineExceededError("the deadline passed")
                   : absl::CancelledError("the client left");
  }
  std::optional<CallOutput::Message> message;
  if (!status_.has_value()) {
    message = output_->Next();
    if (output_->complete()) status_ = output_->status();
  }
  if (!message.has_value() && !status_.has_value()) return;
  if (message.has_value()) {
    writing_ = true;
    written_sequence_ = message->sequence;
  }
  finishing_ = status_.has_value();
  const bool finish = finishing_;
  const grpc::Status status = finish ? ToGrpcStatus(*status_) : grpc::Status::OK;
  // gRPC may call back from inside.
  lock.unlock();
  if (!message.has_value()) return Finish(status);
  write_buffer_ = encoder_(*std::move(message));
  if (finish) {
    StartWriteAndFinish(&write_buffer_, grpc::WriteOptions(), status);
  } else {
    StartWrite(&write_buffer_);
  }
}

void CallStream::OnWriteDone(bool ok) {
  std::unique_lock lock(mutex_);
  writing_ = false;
  if (!ok) client_left_ = true;
  if (written_sequence_.has_value() && output_->Written(*written_sequence_) && !ids_.empty()) {
    scheduler_->Resume(ids_[*written_sequence_]);
  }
  Advance(std::move(lock));
}

void CallStream::OnCancel() {
  std::unique_lock lock(mutex_);
  client_left_ = true;
  CancelAll();
  Advance(std::move(lock));
}

void CallStream::OnDone() {
  std::shared_ptr<CallStream> self;  // released after the lock
  std::lock_guard lock(mutex_);
  self.swap(self_);
  LogCall();
}

void CallStream::LogCall() {
  std::string line = fmt::format("method={} id={} status={}", call_.method, call_.request_id,
                                 std::string(absl::StatusCodeToString(status_->code())));
  if (output_.has_value() && output_->last_result().has_value()) {
    const v1::GenerationResult& result = *output_->last_result();
    const v1::Timings& timings = result.timings();
    const CallOutput::Totals& totals = output_->totals();
    const std::string reason = absl::AsciiStrToLower(
        absl::StripPrefix(v1::FinishReason_Name(result.finish_reason()), "FINISH_REASON_"));
    // Of several sequences: sums, and how the last one to end went.
    line += fmt::format(
        " sequences={} finish={} prompt_tokens={} cached_tokens={} generated_tokens={} steps={}"
        " queue_ms={:.2f} prefill_ms={:.2f} decode_ms={:.2f}",
        output_->num_sequences(), reason, totals.prompt_tokens, totals.cached_tokens,
        totals.generated_tokens, timings.steps(), timings.queue_ms(), timings.prefill_ms(),
        timings.decode_ms());
  }
  if (!status_->ok()) {
    line += fmt::format(" error=\"{}\"", std::string(status_->message()));
  }
  spdlog::info("{}", line);
}

}  // namespace photon
