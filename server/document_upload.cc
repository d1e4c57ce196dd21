#include "server/document_upload.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/auth/call_guard.h"
#include "server/byte_buffer_codec.h"
#include "server/call_stream.h"
#include "server/generation_request.h"
#include "server/grpc_status.h"
#include "server/request_id.h"
#include "server/tenant.h"

namespace photon {
namespace {

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::Status ToStatus(SequenceEnd end) {
  switch (end) {
    case SequenceEnd::kDeadline:
      return absl::DeadlineExceededError("the deadline passed before the document was computed");
    case SequenceEnd::kDrained:
      return absl::UnavailableError("the server is draining");
    case SequenceEnd::kEngineFailed:
      return absl::UnavailableError("the engine has failed");
    case SequenceEnd::kLength:
      // Filled, but not kept: never say that there is a document.
      return absl::ResourceExhaustedError("the cache could not keep the document");
    case SequenceEnd::kListener:
    case SequenceEnd::kStopToken:
    case SequenceEnd::kCancelled:
    case SequenceEnd::kStalled:
      return absl::CancelledError("the request was cancelled");
  }
  return absl::InternalError("unknown end of a sequence");
}

RequestSummary SummaryOf(const Caller& caller, const SequenceStats& stats) {
  const auto milliseconds = [](Duration time) {
    return std::chrono::duration<double, std::milli>(time).count();
  };
  const TimePoint first_step = stats.first_step.value_or(stats.finished);
  return {.caller = caller.name(),
          .sequences = 1,
          .prompt_tokens = stats.prompt_tokens,
          .cached_tokens = stats.cached_tokens,
          .steps = stats.steps,
          .queue_ms = milliseconds(first_step - stats.submitted),
          .prefill_ms = milliseconds(stats.finished - first_step)};
}

int64_t CacheBytes(const EngineShape& shape, size_t num_tokens) {
  // The tokens of an unfinished meta-context are not kept.
  const int kept = static_cast<int>(num_tokens) / shape.meta_tokens * shape.meta_tokens;
  return PagesNeeded(shape, kept) * shape.page_bytes;
}

}  // namespace

absl::StatusOr<std::chrono::seconds> CheckTtl(int64_t ttl_s, const DocumentLimits& limits) {
  const int64_t max_s = limits.max_ttl.count();
  if (ttl_s >= 1 && ttl_s <= max_s) return std::chrono::seconds(ttl_s);
  return Invalid("ttl_s: expected 1 to ", max_s, ", got ", ttl_s);
}

v1::Document ToProto(const Document& document, TimePoint now) {
  const auto unix_ms = [&](TimePoint time) {
    const auto since_epoch = (std::chrono::system_clock::now() + (time - now)).time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(since_epoch).count();
  };
  v1::Document message;
  message.set_id(document.id);
  message.set_display_name(document.display_name);
  message.set_num_tokens(static_cast<int32_t>(document.tokens->size()));
  message.set_cache_bytes(document.cache_bytes);
  message.set_created_unix_ms(unix_ms(document.created));
  message.set_expires_unix_ms(unix_ms(document.expires));
  message.set_owner(TenantName(document.tenant));
  return message;
}

absl::Status DocumentContent::Add(v1::CreateDocumentRequest& message) {
  using Part = v1::CreateDocumentRequest::PartCase;
  if (!has_settings_ && message.part_case() != Part::kSettings) {
    return Invalid("the first message must bring settings");
  }
  switch (message.part_case()) {
    case Part::kSettings:
      return AddSettings(*message.mutable_settings());
    case Part::kText:
      if (!ids_.empty()) return Invalid("text: the document has token_ids already");
      if (text_.size() + message.text().size() > static_cast<size_t>(limits_.max_bytes)) {
        return Invalid("text: expected at most ", limits_.max_bytes, " bytes together");
      }
      text_ += message.text();
      return absl::OkStatus();
    case Part::kTokenIds:
      return AddTokenIds(message.token_ids());
    case Part::PART_NOT_SET:
      break;
  }
  return Invalid("part: expected text or token_ids");
}

absl::Status DocumentContent::AddSettings(v1::DocumentSettings& settings) {
  if (has_settings_) return Invalid("settings: only the first message may bring them");
  has_settings_ = true;
  if (settings.display_name().size() > static_cast<size_t>(limits_.max_name_bytes)) {
    return Invalid("settings.display_name: expected at most ", limits_.max_name_bytes,
                   " bytes, got ", settings.display_name().size());
  }
  display_name_ = std::move(*settings.mutable_display_name());
  ttl_ = std::min(limits_.default_ttl, limits_.max_ttl);
  if (!settings.has_ttl_s()) return absl::OkStatus();
  const auto ttl = CheckTtl(settings.ttl_s(), limits_);
  if (!ttl.ok()) return Invalid("settings.", std::string(ttl.status().message()));
  ttl_ = *ttl;
  return absl::OkStatus();
}

absl::Status DocumentContent::AddTokenIds(const v1::TokenIds& ids) {
  if (!text_.empty()) return Invalid("token_ids: the document has text already");
  const int max_tokens = MaxSequenceTokens(model_->shape);
  if (ids_.size() + ids.ids_size() >= static_cast<size_t>(max_tokens)) {
    return Invalid("token_ids: expected at most ", max_tokens - 1, " together");
  }
  for (int i = 0; i < ids.ids_size(); ++i) {
    if (ids.ids(i) < 0 || ids.ids(i) >= model_->shape.vocab_size) {
      return Invalid("token_ids.ids[", i, "]: expected [0, ", model_->shape.vocab_size, "), got ",
                     ids.ids(i));
    }
  }
  ids_.insert(ids_.end(), ids.ids().begin(), ids.ids().end());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> DocumentContent::Finish() const {
  if (!has_settings_) return Invalid("the first message must bring settings");
  if (text_.empty() && ids_.empty()) return Invalid("the document is empty");
  std::vector<TokenId> tokens = ids_.empty() ? EncodeFromBos(text_, *model_) : ids_;
  const int limit = MaxSequenceTokens(model_->shape);
  if (tokens.size() >= static_cast<size_t>(limit)) {
    return Invalid("the document has ", tokens.size(), " tokens, expected at most ", limit - 1,
                   ": the context has ", limit, " and an answer needs one");
  }
  return tokens;
}

// Keeps the upload alive for as long as the scheduler may speak of its sequence.
class DocumentUpload::Listener : public SequenceListener {
 public:
  explicit Listener(std::shared_ptr<DocumentUpload> upload) : upload_(std::move(upload)) {}

  std::optional<size_t> OnTokens(std::span<const SampledToken>) override { return 0; }
  void OnFinish(SequenceEnd end, const SequenceStats& stats) override {
    upload_->OnFinish(end, stats);
  }

 private:
  const std::shared_ptr<DocumentUpload> upload_;
};

DocumentUpload* DocumentUpload::Start(grpc::CallbackServerContext* context, RequestName name,
                                      const UploadEnvironment& environment,
                                      grpc::ByteBuffer* response) {
  auto* upload = new DocumentUpload(context, std::move(name), environment, response);
  std::unique_lock lock(upload->mutex_);
  upload->self_.reset(upload);
  auto place = upload->model_->documents().Reserve(upload->caller_->tenant());
  if (!place.ok()) {
    upload->End(place.status(), std::move(lock));
    return upload;
  }
  upload->place_ = *std::move(place);
  upload->entry_ =
      upload->model_->calls().Add([weak = std::weak_ptr(upload->self_)](const absl::Status& why) {
        const std::shared_ptr<DocumentUpload> self = weak.lock();
        if (self != nullptr) self->End(why, std::unique_lock(self->mutex_));
      });
  lock.unlock();
  upload->StartRead(&upload->read_buffer_);
  return upload;
}

DocumentUpload::DocumentUpload(grpc::CallbackServerContext* context, RequestName name,
                               const UploadEnvironment& environment, grpc::ByteBuffer* response)
    : context_(context),
      name_(std::move(name)),
      environment_(environment),
      lease_(environment.models->Enter()),
      model_(lease_.model()),
      caller_(CallOf(*context).caller()),
      response_(response),
      content_(environment.limits, &model_->facts()) {}

void DocumentUpload::OnReadDone(bool ok) {
  if (!ok) return Submit();
  absl::Status status = AddMessage();
  if (!status.ok()) return End(status, std::unique_lock(mutex_));
  StartRead(&read_buffer_);
}

absl::Status DocumentUpload::AddMessage() {
  v1::CreateDocumentRequest message;
  if (absl::Status status = ParseMessage(read_buffer_, &message); !status.ok()) return status;
  return content_.Add(message);
}

void DocumentUpload::Submit() {
  absl::StatusOr<std::vector<TokenId>> tokens = content_.Finish();
  std::unique_lock lock(mutex_);
  // Streams that break off end like those that are complete.
  if (status_.has_value()) return;
  if (client_left_ || context_->IsCancelled()) {
    return End(absl::CancelledError("the client left"), std::move(lock));
  }
  if (!tokens.ok()) return End(tokens.status(), std::move(lock));
  expires_ = environment_.clock->Now() + content_.ttl();
  tokens_ = std::make_shared<const std::vector<TokenId>>(*std::move(tokens));

  SequenceRequest request;
  request.prompt = *tokens_;
  request.max_tokens = 0;
  request.mode = model_->facts().default_mode;
  request.pin_until = DocumentStore::PinUntil(expires_);
  request.tenant = caller_->tenant();
  request.deadline = DeadlineOf(*context_);
  auto listener = std::make_unique<Listener>(self_);
  lock.unlock();
  const auto id = model_->scheduler().Submit(std::move(request), std::move(listener));
  lease_.End();
  lock.lock();
  if (!id.ok()) {
    AddRetryPushback(*context_, id.status());
    return End(id.status(), std::move(lock));
  }
  sequence_ = *id;
  if (client_left_) model_->scheduler().Cancel(*id);
}

void DocumentUpload::OnFinish(SequenceEnd end, const SequenceStats& stats) {
  caller_->Charge(stats);
  std::unique_lock lock(mutex_);
  summary_ = SummaryOf(*caller_, stats);
  if (status_.has_value() || client_left_) {
    if (stats.pin.has_value()) model_->scheduler().Unpin(*stats.pin);
    return End(absl::CancelledError("the client left"), std::move(lock));
  }
  if (end != SequenceEnd::kLength || !stats.pin.has_value()) {
    return End(ToStatus(end), std::move(lock));
  }
  if (environment_.models->current() != model_) {
    // The document would end with its model, before anybody could ask it.
    return End(absl::UnavailableError("the model was replaced meanwhile; send it again"),
               std::move(lock));
  }
  Keep(*stats.pin);
  End(absl::OkStatus(), std::move(lock));
}

void DocumentUpload::Keep(PinId pin) {
  Document document;
  document.display_name = content_.display_name();
  document.tokens = tokens_;
  document.cache_bytes = CacheBytes(model_->facts().shape, tokens_->size());
  document.created = environment_.clock->Now();
  document.expires = expires_;
  document.pin = pin;
  document = model_->documents().Add(std::move(place_), std::move(document));
  document_id_ = document.id;
  v1::CreateDocumentResponse response;
  *response.mutable_document() = ToProto(document, document.created);
  *response_ = SerializeMessage(response);
}

void DocumentUpload::End(const absl::Status& status, std::unique_lock<std::mutex> lock) {
  if (status_.has_value()) return;
  status_ = status;
  place_.reset();  // before the client knows: it may come again at once
  lock.unlock();
  ReturnRequestId(context_, status.ok() ? Answer::kResponse : Answer::kErrorAlone);
  Finish(ToGrpcStatus(status));
}

void DocumentUpload::OnCancel() {
  std::lock_guard lock(mutex_);
  client_left_ = true;
  // The read in flight, or the sequence's end, ends the call.
  if (sequence_.has_value()) model_->scheduler().Cancel(*sequence_);
}

void DocumentUpload::OnDone() {
  std::shared_ptr<DocumentUpload> self;  // released after the lock
  std::lock_guard lock(mutex_);
  self.swap(self_);
  if (!document_id_.empty() && context_->IsCancelled()) {
    // The client left before it could learn the id. Should the document have expired, all is well
    // too.
    model_->documents().Delete(caller_->tenant(), document_id_).IgnoreError();
  }
  LogRequest(name_, *status_, summary_);
}

}  // namespace photon
