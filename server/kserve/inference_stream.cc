#include "server/kserve/inference_stream.h"

#include <utility>

#include "inference/grpc_predict_v2.grpc.pb.h"
#include "server/auth/call_guard.h"
#include "server/byte_buffer_codec.h"
#include "server/call_stream.h"
#include "server/grpc_status.h"
#include "server/request_id.h"

namespace photon {
namespace {

// Inferences of a stream at a time; further requests wait unread.
constexpr size_t kMaxInFlight = 256;

}  // namespace

InferenceStream::InferenceStream(grpc::CallbackServerContext* context,
                                 const Inference::Environment& environment)
    : context_(context),
      environment_(environment),
      call_name_(NameCall(context, inference::GRPCInferenceService::service_full_name(),
                          "ModelStreamInfer")),
      first_caller_(CallOf(*context).TakeCaller()) {}

InferenceStream* InferenceStream::Start(grpc::CallbackServerContext* context,
                                        const Inference::Environment& environment) {
  auto* stream = new InferenceStream(context, environment);
  stream->self_.reset(stream);
  ReturnRequestId(context, Answer::kResponse);
  stream->StartSendInitialMetadata();
  stream->Advance();
  return stream;
}

void InferenceStream::OnReadDone(bool ok) {
  if (ok) TakeRequest();
  {
    std::lock_guard lock(mutex_);
    reading_ = false;
    if (!ok) half_closed_ = true;
  }
  Advance();
}

absl::StatusOr<std::shared_ptr<const Caller>> InferenceStream::NextCaller() {
  {
    std::lock_guard lock(mutex_);
    if (first_caller_ != nullptr) return std::exchange(first_caller_, nullptr);
  }
  return CallOf(*context_).AdmitAnother();
}

void InferenceStream::TakeRequest() {
  inference::ModelInferRequest request;
  absl::Status status = ParseMessage(read_buffer_, &request);
  inference::ModelInferResponse frame;
  frame.set_model_name(request.model_name());
  if (FindInvalidUtf8(frame).empty()) frame.set_id(request.id());
  read_buffer_.Clear();

  std::shared_ptr<Inference> inference;
  RequestName name = call_name_;
  name.received = std::chrono::system_clock::now();
  if (!status.ok()) {
    LogRequest(name, status, std::nullopt);
  } else {
    auto caller = NextCaller();
    status = caller.status();
    if (status.ok()) {
      Inference::Settings settings = {.name = std::move(name),
                                      .may_stream = true,
                                      .deadline = DeadlineOf(*context_),
                                      .caller = *std::move(caller)};
      settings.on_change = [weak = std::weak_ptr<InferenceStream>(self_)] {
        if (const std::shared_ptr<InferenceStream> self = weak.lock()) self->Advance();
      };
      auto created = Inference::Create(environment_, request, std::move(settings));
      status = created.status();
      if (created.ok()) inference = *std::move(created);
    }
  }
  std::optional<absl::Status> left;
  {
    std::lock_guard lock(mutex_);
    if (inference == nullptr) {
      QueueError(status, std::move(frame));
    } else {
      inferences_.push_back(inference);
    }
    left = left_;
  }
  if (inference == nullptr) return;
  if (left.has_value()) return inference->Leave(*left);
  inference->Submit();
}

void InferenceStream::QueueError(const absl::Status& error, inference::ModelInferResponse frame) {
  inference::ModelStreamInferResponse response;
  response.set_error_message(std::string(error.message()));
  auto& parameters = *frame.mutable_parameters();
  parameters["triton_final_response"].set_bool_param(true);
  parameters["status_code"].set_string_param(absl::StatusCodeToString(error.code()));
  response.mutable_infer_response()->Swap(&frame);
  errors_.push_back(std::move(response));
}

bool InferenceStream::TakeResponse(Inferences& ended) {
  for (size_t turns = inferences_.size(); turns > 0 && errors_.empty(); --turns) {
    const std::shared_ptr<Inference> inference = inferences_.front();
    inferences_.pop_front();
    Inference::Reading reading = inference->Next();
    if (reading.end.has_value()) {
      if (!reading.end->ok()) QueueError(*reading.end, inference->Frame());
      ended.push_back(inference);
    } else {
      inferences_.push_back(inference);
    }
    if (!reading.response.has_value()) continue;
    inference::ModelStreamInferResponse response;
    response.mutable_infer_response()->Swap(&*reading.response);
    write_buffer_ = SerializeMessage(response);
    written_ = inference;
    return true;
  }
  if (errors_.empty()) return false;
  write_buffer_ = SerializeMessage(errors_.front());
  errors_.pop_front();
  return true;
}

void InferenceStream::Advance() {
  Inferences ended;
  bool read = false;
  bool write = false;
  bool finish = false;
  grpc::Status status;
  {
    std::lock_guard lock(mutex_);
    if (finishing_) return;
    if (left_.has_value()) {
      ended.swap(inferences_);
      // What each one's end is, for the log.
      for (const std::shared_ptr<Inference>& inference : ended) (void)inference->Next();
      errors_.clear();
    } else if (!writing_) {
      write = writing_ = TakeResponse(ended);
    }
    read = !reading_ && !half_closed_ && !left_.has_value() && inferences_.size() < kMaxInFlight;
    reading_ = reading_ || read;
    finish = !reading_ && !writing_ && inferences_.empty();
    finishing_ = finish;
    if (finish && left_.has_value()) status = ToGrpcStatus(*left_);
  }
  // gRPC may call back from inside, and so may inferences when they end.
  if (read) StartRead(&read_buffer_);
  if (write) StartWrite(&write_buffer_);
  ended.clear();
  if (finish) Finish(status);
}

void InferenceStream::OnWriteDone(bool ok) {
  std::shared_ptr<Inference> inference;  // destroyed without the lock
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    inference = std::exchange(written_, nullptr);
    if (inference != nullptr) inference->Written();
  }
  if (!ok) return LeaveAll(WhyTheClientLeft(*context_));
  Advance();
}

void InferenceStream::OnCancel() {
  LeaveAll(WhyTheClientLeft(*context_));
}

void InferenceStream::LeaveAll(const absl::Status& why) {
  Inferences inferences;
  {
    std::lock_guard lock(mutex_);
    if (!left_.has_value()) left_ = why;
    inferences = inferences_;
  }
  for (const std::shared_ptr<Inference>& inference : inferences) inference->Leave(why);
  Advance();
}

void InferenceStream::OnDone() {
  // May destroy this object.
  std::shared_ptr<InferenceStream>(std::move(self_)).reset();
}

}  // namespace photon
