#include "bench/in_process_target.h"

#include <future>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace photon {

ServingFacts FactsOf(const ModelConfig& config, const EngineShape& shape) {
  ServingFacts facts{.device = shape.device,
                     .vocab_size = shape.vocab_size,
                     .meta_tokens = shape.meta_tokens,
                     .max_tokens = MaxSequenceTokens(shape),
                     .page_tokens = shape.page_tokens,
                     .page_bytes = shape.page_bytes,
                     .num_pages = shape.num_pages,
                     .modes = shape.modes};
  const auto kv_width = [](const StackConfig& stack) {
    return int64_t{2} * stack.num_layers * stack.num_kv_heads * stack.head_dim;
  };
  for (int i = 0; i < config.num_levels(); ++i) {
    const LevelConfig& level = config.levels[i];
    facts.kv_width_of_all_layers += kv_width(level.encoder) + kv_width(level.decoder);
    if (config.level_grows(i)) {
      facts.kv_width_that_grows_per_token +=
          static_cast<double>(kv_width(level.encoder)) / config.tokens_per_unit(i);
    }
  }
  return facts;
}

// Touched by the thread that starts the call before it is submitted, and by the loop thread after.
struct InProcessTarget::RunningCall {
  CallId id{};
  CallRecord record;
  size_t num_ended = 0;
  OnDone on_done;
};

class InProcessTarget::CallListener final : public SequenceListener {
 public:
  CallListener(InProcessTarget* target, std::shared_ptr<RunningCall> call, size_t index)
      : target_(target), call_(std::move(call)), index_(index) {}

  std::optional<size_t> OnTokens(std::span<const SampledToken> tokens) override {
    record().arrivals.push_back(
        {.time = target_->clock_->Now(), .tokens = static_cast<int>(tokens.size())});
    return std::nullopt;
  }

  void OnFinish(SequenceEnd end, const SequenceStats& stats) override {
    record().prompt_tokens = stats.prompt_tokens;
    record().cached_tokens = stats.cached_tokens;
    record().finished = end == SequenceEnd::kLength;
    if (stats.first_step.has_value()) {
      record().queue_ms =
          std::chrono::duration<double, std::milli>(*stats.first_step - stats.submitted).count();
    }
    if (end == SequenceEnd::kCancelled) {
      call_->record.status = absl::CancelledError("cancelled");
    } else if (end != SequenceEnd::kLength) {
      call_->record.status = absl::InternalError(
          absl::StrCat("a sequence ended with: ", std::string(SequenceEndName(end))));
    }
    if (++call_->num_ended == call_->record.sequences.size()) target_->Finish(*call_);
  }

 private:
  SequenceRecord& record() { return call_->record.sequences[index_]; }

  InProcessTarget* const target_;
  const std::shared_ptr<RunningCall> call_;
  const size_t index_;
};

// Waits for the prefill of a document.
class InProcessTarget::PinListener final : public SequenceListener {
 public:
  explicit PinListener(std::promise<std::optional<PinId>> pin) : pin_(std::move(pin)) {}

  std::optional<size_t> OnTokens(std::span<const SampledToken>) override { return 0; }
  void OnFinish(SequenceEnd, const SequenceStats& stats) override { pin_.set_value(stats.pin); }

 private:
  std::promise<std::optional<PinId>> pin_;
};

absl::StatusOr<std::unique_ptr<InProcessTarget>> InProcessTarget::Create(
    const ModelConfig& config, Engine* engine, const SchedulerOptions& options) {
  auto clock = std::make_unique<SteadyClock>();
  auto scheduler = Scheduler::Create(engine, clock.get(), options);
  if (!scheduler.ok()) return scheduler.status();
  return std::unique_ptr<InProcessTarget>(new InProcessTarget(
      FactsOf(config, engine->shape()), std::move(clock), *std::move(scheduler)));
}

InProcessTarget::InProcessTarget(ServingFacts facts, std::unique_ptr<SteadyClock> clock,
                                 std::unique_ptr<Scheduler> scheduler)
    : facts_(std::move(facts)),
      clock_(std::move(clock)),
      scheduler_(std::move(scheduler)),
      loop_([this] {
        while (scheduler_->WaitForWork() && scheduler_->RunStep().ok()) {
        }
      }) {}

InProcessTarget::~InProcessTarget() {
  scheduler_->Drain(clock_->Now());
  loop_.join();
}

ServingTarget::CallId InProcessTarget::Start(ServingCall call, OnDone on_done) {
  auto running = std::make_shared<RunningCall>();
  running->on_done = std::move(on_done);
  running->record.sequences.resize(call.prompts.size() * call.samples);
  std::vector<TokenId> document;
  {
    std::lock_guard lock(mutex_);
    running->id = CallId{next_call_++};
    sequences_[running->id] = {};
    if (call.document.has_value()) document = documents_.at(*call.document).tokens;
  }
  std::vector<Scheduler::Submission> submissions;
  for (size_t p = 0; p < call.prompts.size(); ++p) {
    std::vector<TokenId> prompt = document;
    prompt.insert(prompt.end(), call.prompts[p].begin(), call.prompts[p].end());
    for (int s = 0; s < call.samples; ++s) {
      SequenceRequest request{.prompt = prompt,
                              .max_tokens = call.max_tokens,
                              .mode = call.mode,
                              .sampling = {.temperature = call.temperature,
                                           .seed = call.seed,
                                           .query = static_cast<uint32_t>(p),
                                           .sample = static_cast<uint32_t>(s)}};
      submissions.push_back({std::move(request),
                             std::make_unique<CallListener>(this, running, p * call.samples + s)});
    }
  }
  const CallId id = running->id;
  running->record.sent = clock_->Now();
  absl::StatusOr<std::vector<SequenceId>> ids = scheduler_->SubmitAll(std::move(submissions));
  if (!ids.ok()) {
    running->record.status = ids.status();
    Finish(*running);
    return id;
  }
  std::lock_guard lock(mutex_);
  if (const auto found = sequences_.find(id); found != sequences_.end()) {
    found->second = *std::move(ids);
  }
  return id;
}

void InProcessTarget::Finish(RunningCall& call) {
  {
    std::lock_guard lock(mutex_);
    sequences_.erase(call.id);
  }
  call.on_done(std::move(call.record));
}

void InProcessTarget::Cancel(CallId call) {
  std::lock_guard lock(mutex_);
  const auto found = sequences_.find(call);
  if (found == sequences_.end()) return;
  for (const SequenceId id : found->second) scheduler_->Cancel(id);
}

absl::StatusOr<std::string> InProcessTarget::CreateDocument(const std::vector<TokenId>& tokens) {
  std::promise<std::optional<PinId>> promise;
  std::future<std::optional<PinId>> pin = promise.get_future();
  const absl::StatusOr<SequenceId> id =
      scheduler_->Submit({.prompt = tokens, .max_tokens = 0, .pin_until = TimePoint::max()},
                         std::make_unique<PinListener>(std::move(promise)));
  if (!id.ok()) return id.status();
  Document document{.tokens = tokens, .pin = pin.get()};
  if (!document.pin.has_value()) return absl::InternalError("the document was not kept");
  const std::string name = absl::StrCat("document ", static_cast<int64_t>(*id));
  std::lock_guard lock(mutex_);
  documents_[name] = std::move(document);
  return name;
}

absl::Status InProcessTarget::DeleteDocument(const std::string& document) {
  std::lock_guard lock(mutex_);
  const auto found = documents_.find(document);
  if (found == documents_.end()) return absl::NotFoundError("no such document");
  scheduler_->Unpin(*found->second.pin);
  documents_.erase(found);
  return absl::OkStatus();
}

}  // namespace photon
