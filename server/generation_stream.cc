#include "server/generation_stream.h"

#include <spdlog/fmt/fmt.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/byte_buffer_codec.h"
#include "server/grpc_status.h"

namespace photon {
namespace {

// What a client should wait before it tries a full server again.
constexpr char kRetryPushbackMs[] = "1000";

// Serialised size of a token with its log-probabilities, roughly.
int64_t UnreadBytes(const v1::GenerateResponse& message) {
  int64_t bytes = static_cast<int64_t>(message.text().size()) + 3 * message.token_ids_size();
  if (!message.logprobs().empty()) {
    bytes += message.logprobs_size() * (8 + 12 * int64_t{message.logprobs(0).top_size()});
  }
  return bytes;
}

absl::Status ToStatus(SequenceEnd end, const SequenceStats& stats) {
  switch (end) {
    case SequenceEnd::kListener:
    case SequenceEnd::kLength:
      return absl::OkStatus();
    case SequenceEnd::kDeadline:
      return absl::DeadlineExceededError("the deadline passed during generation");
    case SequenceEnd::kCancelled:
      return absl::CancelledError("the request was cancelled");
    case SequenceEnd::kDrained:
      if (stats.generated_tokens > 0) return absl::OkStatus();
      return absl::UnavailableError("the server is draining");
    case SequenceEnd::kEngineFailed:
      return absl::UnavailableError("the engine has failed");
  }
  return absl::InternalError("unknown end of a sequence");
}

TimePoint Deadline(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return TimePoint::max();
  return std::chrono::steady_clock::now() +
         std::chrono::duration_cast<Duration>(deadline - std::chrono::system_clock::now());
}

}  // namespace

// Keeps the stream alive for as long as the scheduler may call it.
class GenerationStream::Listener : public SequenceListener {
 public:
  explicit Listener(std::shared_ptr<GenerationStream> stream) : stream_(std::move(stream)) {}

  std::optional<size_t> OnTokens(std::span<const SampledToken> tokens) override {
    return stream_->OnTokens(tokens);
  }
  void OnFinish(SequenceEnd end, const SequenceStats& stats) override {
    stream_->OnFinish(end, stats);
  }

 private:
  const std::shared_ptr<GenerationStream> stream_;
};

GenerationStream* GenerationStream::Reject(grpc::CallbackServerContext* context,
                                           std::string request_id, const absl::Status& error) {
  auto* stream = new GenerationStream(context, std::move(request_id));
  std::unique_lock lock(stream->mutex_);
  stream->self_.reset(stream);
  stream->status_ = error;
  stream->Advance(std::move(lock));
  return stream;
}

GenerationStream* GenerationStream::Start(grpc::CallbackServerContext* context,
                                          std::string request_id, Generation generation,
                                          const Tokenizer& tokenizer, Scheduler* scheduler,
                                          int64_t max_unread_bytes) {
  auto* stream = new GenerationStream(context, std::move(request_id));
  {
    std::lock_guard lock(stream->mutex_);
    stream->self_.reset(stream);
    stream->output_.emplace(generation, tokenizer);
  }
  stream->max_unread_bytes_ = max_unread_bytes;
  generation.sequence.deadline = Deadline(*context);
  stream->Submit(std::move(generation), scheduler);
  return stream;
}

GenerationStream::GenerationStream(grpc::CallbackServerContext* context, std::string request_id)
    : context_(context), request_id_(std::move(request_id)) {}

void GenerationStream::Submit(Generation generation, Scheduler* scheduler) {
  std::unique_lock lock(mutex_);
  auto listener = std::make_unique<Listener>(self_);
  scheduler_ = scheduler;
  lock.unlock();
  const absl::StatusOr<SequenceId> id =
      scheduler->Submit(std::move(generation.sequence), std::move(listener));
  lock.lock();
  if (id.ok()) {
    sequence_ = *id;
    if (client_left_) scheduler->Cancel(*id);
    return;
  }
  if (absl::IsResourceExhausted(id.status())) {
    context_->AddTrailingMetadata("grpc-retry-pushback-ms", kRetryPushbackMs);
  }
  status_ = id.status();
  Advance(std::move(lock));
}

std::optional<size_t> GenerationStream::OnTokens(std::span<const SampledToken> tokens) {
  std::unique_lock lock(mutex_);
  if (client_left_ || status_.has_value()) return 0;
  const std::optional<size_t> end = output_->Append(tokens, pending_);
  has_pending_ = true;
  if (UnreadBytes(pending_) > max_unread_bytes_) {
    status_ = absl::ResourceExhaustedError(absl::StrCat(
        "the client does not read: more than ", max_unread_bytes_, " bytes of output wait"));
    return end.value_or(tokens.size());
  }
  // The end of the output comes with the result, in OnFinish.
  if (!end.has_value()) Advance(std::move(lock));
  return end;
}

void GenerationStream::OnFinish(SequenceEnd end, const SequenceStats& stats) {
  std::unique_lock lock(mutex_);
  output_->Finish(end, stats, pending_);
  result_ = pending_.result();
  has_pending_ = true;
  if (!status_.has_value()) status_ = ToStatus(end, stats);
  Advance(std::move(lock));
}

void GenerationStream::Advance(std::unique_lock<std::mutex> lock) {
  if (writing_ || finishing_) return;
  if (client_left_) {
    // gRPC also cancels calls whose deadline has passed.
    const bool late = std::chrono::system_clock::now() >= context_->deadline();
    status_ = late ? absl::DeadlineExceededError("the deadline passed")
                   : absl::CancelledError("the client left");
    has_pending_ = false;
  }
  if (!has_pending_ && !status_.has_value()) return;
  if (has_pending_) {
    write_buffer_ = SerializeMessage(pending_);
    pending_.Clear();
    has_pending_ = false;
    writing_ = true;
  }
  finishing_ = status_.has_value();
  const bool write = writing_;
  const grpc::Status status = finishing_ ? ToGrpcStatus(*status_) : grpc::Status::OK;
  const bool finish = finishing_;
  // gRPC may call back from inside.
  lock.unlock();
  if (write && finish) {
    StartWriteAndFinish(&write_buffer_, grpc::WriteOptions(), status);
  } else if (write) {
    StartWrite(&write_buffer_);
  } else {
    Finish(status);
  }
}

void GenerationStream::OnWriteDone(bool ok) {
  std::unique_lock lock(mutex_);
  writing_ = false;
  if (!ok) client_left_ = true;
  Advance(std::move(lock));
}

void GenerationStream::OnCancel() {
  std::unique_lock lock(mutex_);
  client_left_ = true;
  if (sequence_.has_value()) scheduler_->Cancel(*sequence_);
  Advance(std::move(lock));
}

void GenerationStream::OnDone() {
  std::shared_ptr<GenerationStream> self;  // released after the lock
  std::lock_guard lock(mutex_);
  self.swap(self_);
  LogRequest();
}

void GenerationStream::LogRequest() {
  std::string line = fmt::format("method=Generate id={} status={}", request_id_,
                                 std::string(absl::StatusCodeToString(status_->code())));
  if (result_.has_value()) {
    const v1::Usage& usage = result_->usage();
    const v1::Timings& timings = result_->timings();
    const std::string reason = absl::AsciiStrToLower(
        absl::StripPrefix(v1::FinishReason_Name(result_->finish_reason()), "FINISH_REASON_"));
    line += fmt::format(
        " finish={} prompt_tokens={} cached_tokens={} generated_tokens={} steps={} queue_ms={:.2f}"
        " prefill_ms={:.2f} decode_ms={:.2f}",
        reason, usage.prompt_tokens(), usage.cached_tokens(), usage.generated_tokens(),
        timings.steps(), timings.queue_ms(), timings.prefill_ms(), timings.decode_ms());
  }
  if (!status_->ok()) {
    line += fmt::format(" error=\"{}\"", std::string(status_->message()));
  }
  spdlog::info("{}", line);
}

}  // namespace photon
