#include "bench/grpc_target.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <string>
#include <type_traits>
#include <utility>

#include "photon/v1/model.grpc.pb.h"

namespace photon {
namespace {

constexpr auto kConnectTimeout = std::chrono::seconds(60);

absl::Status ToAbslStatus(const grpc::Status& status) {
  // gRPC's codes and Abseil's are the same numbers.
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

v1::GenerationMode ToProto(GenerationMode mode) {
  switch (mode) {
    case GenerationMode::kExact:
      return v1::GENERATION_MODE_EXACT;
    case GenerationMode::kHierGen:
      return v1::GENERATION_MODE_HIERGEN;
    case GenerationMode::kRecGen:
      return v1::GENERATION_MODE_RECGEN;
  }
  return v1::GENERATION_MODE_UNSPECIFIED;
}

std::optional<GenerationMode> FromProto(int mode) {
  switch (mode) {
    case v1::GENERATION_MODE_EXACT:
      return GenerationMode::kExact;
    case v1::GENERATION_MODE_HIERGEN:
      return GenerationMode::kHierGen;
    case v1::GENERATION_MODE_RECGEN:
      return GenerationMode::kRecGen;
    default:
      return std::nullopt;
  }
}

int64_t KvWidth(const v1::StackInfo& stack) {
  return int64_t{2} * stack.num_layers() * stack.num_kv_heads() * stack.head_dim();
}

ServingFacts FactsOf(const v1::GetModelInfoResponse& info) {
  ServingFacts facts{.device = info.device(),
                     .vocab_size = info.vocab_size(),
                     .meta_tokens = info.meta_context_tokens(),
                     .max_tokens = info.max_context_tokens(),
                     .page_tokens = info.cache().page_tokens(),
                     .page_bytes = info.cache().page_bytes(),
                     .num_pages = info.cache().num_pages()};
  for (const int mode : info.modes()) {
    if (const auto known = FromProto(mode)) facts.modes.push_back(*known);
  }
  int tokens_per_unit = 1;
  for (const v1::LevelInfo& level : info.levels()) {
    tokens_per_unit *= level.chunk_size();
    facts.kv_width_of_all_layers += KvWidth(level.encoder()) + KvWidth(level.decoder());
    if (level.encoder_span() == v1::ENCODER_SPAN_GLOBAL) {
      facts.kv_width_that_grows_per_token +=
          static_cast<double>(KvWidth(level.encoder())) / tokens_per_unit;
    }
  }
  return facts;
}

v1::GenerationParameters ParametersOf(const ServingCall& call) {
  v1::GenerationParameters parameters;
  parameters.set_mode(ToProto(call.mode));
  parameters.set_max_tokens(call.max_tokens);
  parameters.mutable_sampling()->set_temperature(call.temperature);
  parameters.mutable_sampling()->set_seed(call.seed);
  parameters.mutable_stop()->set_ignore_eos(true);
  parameters.set_n(call.samples);
  return parameters;
}

v1::Prompt PromptOf(const std::vector<TokenId>& tokens) {
  v1::Prompt prompt;
  prompt.mutable_token_ids()->mutable_ids()->Add(tokens.begin(), tokens.end());
  return prompt;
}

// A message's prompt and output; no output where the prompt failed alone.
std::pair<int, const v1::GenerateResponse*> Untag(const v1::GenerateResponse& response) {
  return {0, &response};
}
std::pair<int, const v1::GenerateResponse*> Untag(const v1::GenerateBatchResponse& response) {
  return {response.prompt_index(), response.has_output() ? &response.output() : nullptr};
}
std::pair<int, const v1::GenerateResponse*> Untag(const v1::AskResponse& response) {
  return {response.question_index(), response.has_output() ? &response.output() : nullptr};
}

}  // namespace

// One call, from its start until gRPC is done with it; deletes itself then.
template <typename Response>
class GrpcTarget::Reader final : public grpc::ClientReadReactor<Response> {
 public:
  Reader(GrpcTarget* target, CallId id, const ServingCall& call, OnDone on_done)
      : target_(target), id_(id), samples_(call.samples), on_done_(std::move(on_done)) {
    record_.sequences.resize(call.prompts.size() * call.samples);
  }

  grpc::ClientContext* context() { return &context_; }

  void Begin() {
    record_.sent = SteadyClock().Now();
    this->StartRead(&response_);
    this->StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;  // OnDone follows
    const auto [prompt, output] = Untag(response_);
    if (output == nullptr) {
      failure_ = absl::InternalError(response_.ShortDebugString());
    } else {
      SequenceRecord& sequence = record_.sequences[prompt * samples_ + output->sample_index()];
      if (output->token_ids_size() > 0) {
        sequence.arrivals.push_back(
            {.time = SteadyClock().Now(), .tokens = output->token_ids_size()});
      }
      if (output->has_result()) {
        const v1::GenerationResult& result = output->result();
        sequence.prompt_tokens = result.usage().prompt_tokens();
        sequence.cached_tokens = result.usage().cached_tokens();
        sequence.queue_ms = result.timings().queue_ms();
        sequence.finished = result.finish_reason() == v1::FINISH_REASON_LENGTH;
        if (!sequence.finished) {
          failure_ = absl::InternalError("a sequence ended with: " +
                                         v1::FinishReason_Name(result.finish_reason()));
        }
      }
    }
    this->StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    record_.status = status.ok() ? failure_ : ToAbslStatus(status);
    on_done_(std::move(record_));
    GrpcTarget* const target = target_;
    const CallId id = id_;
    // Cancel() must not find a context that is gone.
    target->Forget(id);
    delete this;
  }

 private:
  GrpcTarget* const target_;
  const CallId id_;
  const int samples_;
  const ServingTarget::OnDone on_done_;
  grpc::ClientContext context_;
  Response response_;
  CallRecord record_;
  absl::Status failure_;
};

absl::StatusOr<std::unique_ptr<GrpcTarget>> GrpcTarget::Connect(
    const std::string& address, int connections, std::function<SchedulerStats()> stats) {
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < connections; ++i) {
    grpc::ChannelArguments arguments;
    // Otherwise channels to one address share a connection.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channels.push_back(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  }
  const std::shared_ptr<grpc::Channel>& channel = channels.front();
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + kConnectTimeout);
  v1::GetModelInfoResponse info;
  const grpc::Status status = v1::ModelService::NewStub(channel)->GetModelInfo(&context, {}, &info);
  if (!status.ok()) return ToAbslStatus(status);
  return std::unique_ptr<GrpcTarget>(new GrpcTarget(FactsOf(info), channels, std::move(stats)));
}

GrpcTarget::GrpcTarget(ServingFacts facts,
                       const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                       std::function<SchedulerStats()> stats)
    : facts_(std::move(facts)),
      documents_(v1::DocumentService::NewStub(channels.front())),
      stats_(std::move(stats)) {
  for (const auto& channel : channels) {
    generation_.push_back(v1::GenerationService::NewStub(channel));
  }
}

GrpcTarget::~GrpcTarget() {
  std::unique_lock lock(mutex_);
  for (const auto& [id, context] : in_flight_) context->TryCancel();
  all_done_.wait(lock, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return in_flight_.empty(); });
}

ServingTarget::CallId GrpcTarget::Start(ServingCall call, OnDone on_done) {
  if (call.document.has_value()) {
    v1::AskRequest request;
    request.set_document_id(*call.document);
    for (const auto& prompt : call.prompts) *request.add_questions() = PromptOf(prompt);
    *request.mutable_parameters() = ParametersOf(call);
    return StartReading<v1::AskRequest, v1::AskResponse>(
        request, call, std::move(on_done), [this](auto* context, auto* message, auto* reader) {
          documents_->async()->Ask(context, message, reader);
        });
  }
  v1::GenerationService::Stub& generation = *generation_[next_stub_++ % generation_.size()];
  if (call.prompts.size() == 1) {
    v1::GenerateRequest request;
    *request.mutable_prompt() = PromptOf(call.prompts[0]);
    *request.mutable_parameters() = ParametersOf(call);
    return StartReading<v1::GenerateRequest, v1::GenerateResponse>(
        request, call, std::move(on_done),
        [&generation](auto* context, auto* message, auto* reader) {
          generation.async()->Generate(context, message, reader);
        });
  }
  v1::GenerateBatchRequest request;
  for (const auto& prompt : call.prompts) *request.add_prompts() = PromptOf(prompt);
  *request.mutable_parameters() = ParametersOf(call);
  return StartReading<v1::GenerateBatchRequest, v1::GenerateBatchResponse>(
      request, call, std::move(on_done), [&generation](auto* context, auto* message, auto* reader) {
        generation.async()->GenerateBatch(context, message, reader);
      });
}

template <typename Request, typename Response>
ServingTarget::CallId GrpcTarget::StartReading(
    const Request& request, const ServingCall& call, OnDone on_done,
    const std::function<void(grpc::ClientContext*, const Request*,
                             grpc::ClientReadReactor<Response>*)>& start) {
  CallId id{};
  Reader<Response>* reader = nullptr;
  {
    std::lock_guard lock(mutex_);
    id = CallId{next_call_++};
    reader = new Reader<Response>(this, id, call, std::move(on_done));
    in_flight_[id] = reader->context();
  }
  // The request is serialised before Begin() returns.
  start(reader->context(), &request, reader);
  reader->Begin();
  return id;
}

void GrpcTarget::Forget(CallId call) {
  std::lock_guard lock(mutex_);
  in_flight_.erase(call);
  if (in_flight_.empty()) all_done_.notify_all();
}

void GrpcTarget::Cancel(CallId call) {
  std::lock_guard lock(mutex_);
  const auto found = in_flight_.find(call);
  if (found != in_flight_.end()) found->second->TryCancel();
}

absl::StatusOr<std::string> GrpcTarget::CreateDocument(const std::vector<TokenId>& tokens) {
  grpc::ClientContext context;
  v1::CreateDocumentResponse response;
  const auto writer = documents_->CreateDocument(&context, &response);
  v1::CreateDocumentRequest request;
  request.mutable_settings();
  writer->Write(request);
  request.mutable_token_ids()->mutable_ids()->Add(tokens.begin(), tokens.end());
  writer->Write(request);
  writer->WritesDone();
  // Where a write failed, the status says why.
  const grpc::Status status = writer->Finish();
  if (!status.ok()) return ToAbslStatus(status);
  return response.document().id();
}

absl::Status GrpcTarget::DeleteDocument(const std::string& document) {
  grpc::ClientContext context;
  v1::DeleteDocumentRequest request;
  request.set_document_id(document);
  v1::DeleteDocumentResponse response;
  return ToAbslStatus(documents_->DeleteDocument(&context, request, &response));
}

}  // namespace photon
