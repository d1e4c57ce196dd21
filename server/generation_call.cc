#include "server/generation_call.h"

#include <chrono>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"

namespace photon {

void CheckThatEachFits(const Scheduler& scheduler, std::vector<absl::StatusOr<Query>>& queries) {
  for (absl::StatusOr<Query>& query : queries) {
    if (!query.ok()) continue;
    if (absl::Status status = scheduler.CheckFits(query->sequence); !status.ok()) query = status;
  }
}

namespace {

RequestEnd RequestEndOf(SequenceEnd end, v1::FinishReason reason) {
  if (end == SequenceEnd::kEngineFailed) return RequestEnd::kEngineFailed;
  switch (reason) {
    case v1::FINISH_REASON_STOP_TOKEN:
      return RequestEnd::kStopToken;
    case v1::FINISH_REASON_STOP_STRING:
      return RequestEnd::kStopString;
    case v1::FINISH_REASON_LENGTH:
      return RequestEnd::kLength;
    case v1::FINISH_REASON_DEADLINE:
      return RequestEnd::kDeadline;
    case v1::FINISH_REASON_DRAIN:
      return RequestEnd::kDrain;
    case v1::FINISH_REASON_STALLED:
      return RequestEnd::kStalled;
    default:
      return RequestEnd::kCancelled;
  }
}

}  // namespace

// Keeps the call alive for as long as the scheduler may speak of its sequence.
class GenerationCall::Listener : public SequenceListener {
 public:
  Listener(std::shared_ptr<GenerationCall> call, SequenceIndex index)
      : call_(std::move(call)),
        index_(index),
        meter_(call_->metrics_, std::chrono::steady_clock::now()) {}

  std::optional<size_t> OnTokens(std::span<const SampledToken> tokens) override {
    return call_->OnTokens(index_, tokens, meter_);
  }
  void OnFinish(SequenceEnd end, const SequenceStats& stats) override {
    call_->OnFinish(index_, end, stats, meter_);
  }

 private:
  const std::shared_ptr<GenerationCall> call_;
  const SequenceIndex index_;
  SequenceMeter meter_;
};

GenerationCall::GenerationCall(const CallEnvironment& environment,
                               std::shared_ptr<ServedModel> model,
                               std::vector<absl::StatusOr<Query>> queries, Settings settings)
    : model_(std::move(model)),
      scheduler_(&model_->scheduler()),
      latencies_(environment.latencies),
      metrics_(environment.metrics),
      notifier_(environment.notifier),
      notifier_thread_(notifier_->AssignThread()),
      settings_(std::move(settings)),
      output_(std::move(queries), *model_->facts().tokenizer, environment.max_unread_bytes) {}

std::shared_ptr<GenerationCall> GenerationCall::Create(const CallEnvironment& environment,
                                                       std::shared_ptr<ServedModel> model,
                                                       std::vector<absl::StatusOr<Query>> queries,
                                                       Settings settings) {
  std::shared_ptr<GenerationCall> call(
      new GenerationCall(environment, std::move(model), std::move(queries), std::move(settings)));
  call->entry_ = call->model_->calls().Add([weak = std::weak_ptr(call)](const absl::Status& why) {
    if (const std::shared_ptr<GenerationCall> self = weak.lock()) self->Leave(why);
  });
  return call;
}

void GenerationCall::Submit() {
  std::vector<Scheduler::Submission> submissions;
  absl::Status allowed;
  {
    std::lock_guard lock(mutex_);
    for (SequenceRequest& request : output_.TakeRequests()) {
      request.deadline = settings_.deadline;
      request.tenant = settings_.caller->tenant();
      allowed.Update(settings_.caller->CheckPriority(request.priority));
      auto listener = std::make_unique<Listener>(shared_from_this(), submissions.size());
      submissions.push_back({std::move(request), std::move(listener)});
    }
  }
  absl::StatusOr<std::vector<SequenceId>> ids = std::vector<SequenceId>();
  if (!allowed.ok()) {
    ids = allowed;
    submissions.clear();
  }
  if (!submissions.empty()) ids = scheduler_->SubmitAll(std::move(submissions));
  {
    std::lock_guard lock(mutex_);
    if (ids.ok()) {
      ids_ = *std::move(ids);
      // What was decided before the ids were known.
      if (end_.has_value() || !output_.status().ok()) CancelAll();
      for (SequenceIndex i = 0; i < ids_.size(); ++i) {
        if (output_.withdrawn(i)) scheduler_->Cancel(ids_[i]);
        if (output_.paused(i)) scheduler_->Pause(ids_[i]);
      }
    } else if (!end_.has_value()) {
      end_ = ids.status();
    }
  }
  settings_.on_change();
}

GenerationCall::Reading GenerationCall::Next() {
  std::lock_guard lock(mutex_);
  Reading reading;
  if (!end_.has_value()) {
    reading.message = output_.Next();
    if (output_.complete()) end_ = output_.status();
  }
  reading.end = end_;
  end_given_ = end_.has_value();
  return reading;
}

void GenerationCall::Written(SequenceIndex sequence) {
  std::lock_guard lock(mutex_);
  if (output_.Written(sequence) && !ids_.empty() && !closed_) scheduler_->Resume(ids_[sequence]);
}

void GenerationCall::Leave(const absl::Status& why) {
  {
    std::lock_guard lock(mutex_);
    if (end_given_) return;
    end_ = why;
    CancelAll();
  }
  settings_.on_change();
}

void GenerationCall::Close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
}

std::optional<size_t> GenerationCall::OnTokens(SequenceIndex index,
                                               std::span<const SampledToken> tokens,
                                               SequenceMeter& meter) {
  CallOutput::Appended appended;
  {
    std::lock_guard lock(mutex_);
    if (end_.has_value()) return 0;
    appended = output_.Append(index, tokens);
    if (appended.pause && !ids_.empty()) scheduler_->Pause(ids_[index]);
    meter.OnTokens(appended.end.value_or(tokens.size()), std::chrono::steady_clock::now());
    if (output_.paused(index)) meter.OnPause();
  }
  TellReader();
  return appended.end;
}

void GenerationCall::OnFinish(SequenceIndex index, SequenceEnd end, const SequenceStats& stats,
                              SequenceMeter& meter) {
  settings_.caller->Charge(stats);
  latencies_->Add(stats);
  bool integrate = false;
  {
    std::lock_guard lock(mutex_);
    const bool was_ok = output_.status().ok();
    integrate = output_.Finish(index, end, stats) && !closed_;
    meter.OnEnd(RequestEndOf(end, output_.last_result()->finish_reason()), stats);
    if (was_ok && !output_.status().ok()) CancelAll();
  }
  if (integrate) StartIntegration(index);
  TellReader();
}

void GenerationCall::TellReader() {
  if (is_told_.exchange(true)) return;
  notifier_->Notify(notifier_thread_, weak_from_this());
}

void GenerationCall::OnNotified() {
  is_told_ = false;
  settings_.on_change();
}

void GenerationCall::StartIntegration(SequenceIndex index) {
  settings_.run_soon([self = shared_from_this(), index] { self->RunIntegration(index); });
}

void GenerationCall::RunIntegration(SequenceIndex index) {
  CallOutput::Integration run;
  {
    std::lock_guard lock(mutex_);
    run = output_.BeginIntegration(index);
  }
  for (EndedSample& sample : run.samples) run.integrator->Add(std::move(sample));
  CallOutput::Integrated integrated;
  {
    std::lock_guard lock(mutex_);
    integrated = output_.EndIntegration(run.query);
    if (closed_) return;
    if (!ids_.empty()) {
      for (const SequenceIndex i : integrated.withdrawn) scheduler_->Cancel(ids_[i]);
    }
  }
  if (integrated.again) StartIntegration(index);
  settings_.on_change();
}

void GenerationCall::CancelAll() {
  if (closed_) return;
  for (SequenceIndex i = 0; i < ids_.size(); ++i) {
    if (!output_.finished(i)) scheduler_->Cancel(ids_[i]);
  }
}

std::optional<RequestSummary> GenerationCall::Summary() const {
  std::lock_guard lock(mutex_);
  if (!output_.last_result().has_value()) return std::nullopt;
  const v1::GenerationResult& result = *output_.last_result();
  const v1::Timings& timings = result.timings();
  const CallOutput::Totals& totals = output_.totals();
  RequestSummary summary;
  summary.caller = settings_.caller->name();
  summary.sequences = static_cast<int64_t>(output_.num_sequences());
  summary.finish = absl::AsciiStrToLower(
      absl::StripPrefix(v1::FinishReason_Name(result.finish_reason()), "FINISH_REASON_"));
  summary.prompt_tokens = totals.prompt_tokens;
  summary.cached_tokens = totals.cached_tokens;
  summary.generated_tokens = totals.generated_tokens;
  summary.steps = timings.steps();
  summary.queue_ms = timings.queue_ms();
  summary.prefill_ms = timings.prefill_ms();
  summary.decode_ms = timings.decode_ms();
  return summary;
}

}  // namespace photon
