#include "scheduler/scheduler.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace photon {

int MaxSequenceTokens(const EngineShape& shape) {
  return shape.max_context / shape.meta_tokens * shape.meta_tokens;
}

int PagesNeeded(const EngineShape& shape, int tokens) {
  // Pages hold whole meta-contexts, so rounding up to a meta-context first would change nothing.
  return (tokens + shape.page_tokens - 1) / shape.page_tokens;
}

struct Scheduler::Sequence {
  SequenceId id{};
  SequenceRequest request;  // the prompt has moved to `tokens`
  std::unique_ptr<SequenceListener> listener;
  // Prompt and output. Rows borrow it during a step while the output grows: its capacity covers
  // max_tokens from admission on.
  std::vector<TokenId> tokens;
  int cached_tokens = 0;  // of `tokens`, held by `pages`; whole meta-contexts
  std::vector<PageId> pages;
  SequenceStats stats;
  bool finished = false;

  int max_tokens_total() const { return stats.prompt_tokens + request.max_tokens; }
};

// Hands a step's tokens to the listeners, and ends the sequences that have enough.
class Scheduler::StepSink : public TokenSink {
 public:
  explicit StepSink(Scheduler* scheduler) : scheduler_(scheduler) {}

  bool OnTokens(int row, std::span<const SampledToken> tokens) override {
    Sequence& sequence = *scheduler_->row_sequences_[row];
    if (sequence.finished || tokens.empty()) return !sequence.finished;

    SequenceStats& stats = sequence.stats;
    if (!stats.first_token.has_value()) stats.first_token = scheduler_->clock_->Now();
    const size_t room = sequence.request.max_tokens - stats.generated_tokens;
    tokens = tokens.first(std::min(tokens.size(), room));

    const std::optional<size_t> end = sequence.listener->OnTokens(tokens);
    if (end.has_value()) tokens = tokens.first(std::min(*end, tokens.size()));
    for (const SampledToken& token : tokens) sequence.tokens.push_back(token.token);
    stats.generated_tokens += static_cast<int>(tokens.size());
    scheduler_->counters_.generated_tokens += static_cast<int64_t>(tokens.size());

    if (end.has_value()) {
      scheduler_->Finish(sequence, SequenceEnd::kListener);
    } else if (stats.generated_tokens == sequence.request.max_tokens) {
      scheduler_->Finish(sequence, SequenceEnd::kLength);
    }
    return !sequence.finished;
  }

 private:
  Scheduler* const scheduler_;
};

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Create(Engine* engine, const Clock* clock,
                                                             const SchedulerOptions& options) {
  const EngineShape& shape = engine->shape();
  std::vector<std::string> problems;
  if (options.max_queue < 1) {
    problems.push_back(absl::StrCat("max_queue: expected at least 1, got ", options.max_queue));
  }
  if (shape.meta_tokens < 1) {
    problems.push_back(absl::StrCat("meta_tokens: expected at least 1, got ", shape.meta_tokens));
  } else {
    if (shape.page_tokens < shape.meta_tokens || shape.page_tokens % shape.meta_tokens != 0) {
      problems.push_back(absl::StrCat("page_tokens: expected a multiple of meta_tokens (",
                                      shape.meta_tokens, "), got ", shape.page_tokens));
    }
    if (shape.max_context < shape.meta_tokens) {
      problems.push_back(absl::StrCat("max_context: expected at least meta_tokens (",
                                      shape.meta_tokens, "), got ", shape.max_context));
    }
    if (shape.max_prefill_tokens < shape.meta_tokens) {
      problems.push_back(absl::StrCat("max_prefill_tokens: expected at least meta_tokens (",
                                      shape.meta_tokens, "), got ", shape.max_prefill_tokens));
    }
  }
  if (shape.num_pages < 1) {
    problems.push_back(absl::StrCat("num_pages: expected at least 1, got ", shape.num_pages));
  }
  if (shape.max_rows < 1) {
    problems.push_back(absl::StrCat("max_rows: expected at least 1, got ", shape.max_rows));
  }
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "; "));
  return std::unique_ptr<Scheduler>(new Scheduler(engine, clock, options));
}

Scheduler::Scheduler(Engine* engine, const Clock* clock, const SchedulerOptions& options)
    : engine_(engine),
      clock_(clock),
      options_(options),
      shape_(engine->shape()),
      pages_(shape_.num_pages) {
  running_.reserve(shape_.max_rows);
  rows_.reserve(shape_.max_rows);
  row_sequences_.reserve(shape_.max_rows);
  PublishStats();
}

Scheduler::~Scheduler() {
  TakeInbox();
  EndEverything(SequenceEnd::kCancelled);
}

absl::Status Scheduler::CheckFits(const SequenceRequest& request) const {
  const auto invalid = [](auto&&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(parts...));
  };
  const int64_t limit = MaxSequenceTokens(shape_);
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  if (prompt >= limit) {
    return invalid("prompt: has ", prompt, " tokens; the context has ", limit,
                   " and the output needs at least one");
  }
  if (request.max_tokens < 1) {
    return invalid("max_tokens: expected at least 1, got ", request.max_tokens);
  }
  if (prompt + request.max_tokens > limit) {
    return invalid("max_tokens: a prompt of ", prompt, " tokens leaves ", limit - prompt,
                   " of the context's ", limit, ", got ", request.max_tokens);
  }
  const int pages = PagesNeeded(shape_, static_cast<int>(prompt) + request.max_tokens);
  if (pages > shape_.num_pages) {
    return invalid("max_tokens: a prompt of ", prompt, " tokens and an output of ",
                   request.max_tokens, " need ", pages, " cache pages; the server has ",
                   shape_.num_pages);
  }
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= shape_.vocab_size) {
      return invalid("prompt: token ", request.prompt[i], " at index ", i,
                     " is not in the vocabulary of ", shape_.vocab_size);
    }
  }
  if (std::find(shape_.modes.begin(), shape_.modes.end(), request.mode) == shape_.modes.end()) {
    return invalid("mode: this checkpoint does not allow it");
  }
  return absl::OkStatus();
}

absl::StatusOr<SequenceId> Scheduler::Submit(SequenceRequest request,
                                             std::unique_ptr<SequenceListener> listener) {
  if (absl::Status status = CheckFits(request); !status.ok()) return status;
  auto sequence = std::make_unique<Sequence>();
  sequence->tokens = std::move(request.prompt);
  sequence->request = std::move(request);
  sequence->listener = std::move(listener);
  sequence->stats.prompt_tokens = static_cast<int>(sequence->tokens.size());
  sequence->stats.submitted = clock_->Now();

  std::unique_lock lock(mutex_);
  if (failed_) return absl::UnavailableError("the engine has failed");
  if (draining_) return absl::UnavailableError("the server is draining");
  const int num_queued = static_cast<int>(arrivals_.size()) + published_.num_waiting;
  if (num_queued >= options_.max_queue) {
    ++rejected_queue_full_;
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", num_queued, " requests are waiting"));
  }
  const SequenceId id{next_id_++};
  sequence->id = id;
  arrivals_.push_back(std::move(sequence));
  lock.unlock();
  work_arrived_.notify_one();
  return id;
}

void Scheduler::Cancel(SequenceId id) {
  {
    std::lock_guard lock(mutex_);
    cancellations_.push_back(id);
  }
  work_arrived_.notify_one();
}

void Scheduler::Drain(TimePoint deadline) {
  {
    std::lock_guard lock(mutex_);
    draining_ = true;
    drain_deadline_ = deadline;
  }
  work_arrived_.notify_one();
}

SchedulerStats Scheduler::stats() const {
  std::lock_guard lock(mutex_);
  SchedulerStats stats = published_;
  stats.num_waiting += static_cast<int>(arrivals_.size());
  stats.rejected_queue_full = rejected_queue_full_;
  return stats;
}

bool Scheduler::WaitForWork() {
  std::unique_lock lock(mutex_);
  // Whatever waits is admitted once nothing runs, so a step with work to do always has rows.
  const bool busy = !running_.empty() || !waiting_.empty();
  work_arrived_.wait(lock, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return busy || !arrivals_.empty() || !cancellations_.empty() || draining_ || failed_;
  });
  return !failed_ && (busy || !arrivals_.empty() || !draining_);
}

absl::Status Scheduler::RunStep() {
  const TimePoint begin = clock_->Now();
  TakeInbox();
  EndOverdue(begin);
  Admit();
  PlanRows(begin);
  PublishStats();
  if (rows_.empty()) return absl::OkStatus();

  const TimePoint step_begin = clock_->Now();
  StepSink sink(this);
  absl::Status status = engine_->Step({}, rows_, sink);
  const TimePoint step_end = clock_->Now();
  if (status.ok()) status = CommitRows();
  if (!status.ok()) {
    {
      std::lock_guard lock(mutex_);
      failed_ = true;
    }
    TakeInbox();
    EndEverything(SequenceEnd::kEngineFailed);
  }
  counters_.step_time += step_end - step_begin;
  counters_.host_time += (step_begin - begin) + (clock_->Now() - step_end);
  PublishStats();
  return status;
}

void Scheduler::TakeInbox() {
  std::vector<SequenceId> cancellations;
  {
    std::lock_guard lock(mutex_);
    for (std::unique_ptr<Sequence>& sequence : arrivals_) waiting_.push_back(std::move(sequence));
    arrivals_.clear();
    published_.num_waiting = static_cast<int>(waiting_.size());
    cancellations.swap(cancellations_);
  }
  if (cancellations.empty()) return;
  std::sort(cancellations.begin(), cancellations.end());
  const auto cancel = [&](Sequence& sequence) {
    if (std::binary_search(cancellations.begin(), cancellations.end(), sequence.id)) {
      Finish(sequence, SequenceEnd::kCancelled);
    }
  };
  for (const auto& sequence : waiting_) cancel(*sequence);
  for (const auto& sequence : running_) cancel(*sequence);
  RemoveFinished();
}

void Scheduler::EndOverdue(TimePoint now) {
  TimePoint drain_deadline;
  {
    std::lock_guard lock(mutex_);
    drain_deadline = drain_deadline_;
  }
  if (now >= drain_deadline) return EndEverything(SequenceEnd::kDrained);
  const auto end_if_overdue = [&](Sequence& sequence) {
    if (now >= sequence.request.deadline) Finish(sequence, SequenceEnd::kDeadline);
  };
  for (const auto& sequence : waiting_) end_if_overdue(*sequence);
  for (const auto& sequence : running_) end_if_overdue(*sequence);
  RemoveFinished();
}

void Scheduler::Admit() {
  while (!waiting_.empty() && static_cast<int>(running_.size()) < shape_.max_rows) {
    Sequence& sequence = *waiting_.front();
    std::optional<std::vector<PageId>> pages =
        pages_.Allocate(PagesNeeded(shape_, sequence.max_tokens_total()));
    if (!pages.has_value()) return;
    sequence.pages = *std::move(pages);
    sequence.tokens.reserve(sequence.max_tokens_total());
    counters_.prompt_tokens += sequence.stats.prompt_tokens;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

void Scheduler::PlanRows(TimePoint now) {
  rows_.clear();
  row_sequences_.clear();
  const int meta = shape_.meta_tokens;
  int prefill_budget = shape_.max_prefill_tokens / meta * meta;
  for (const auto& sequence : running_) {
    const int uncached = static_cast<int>(sequence->tokens.size()) - sequence->cached_tokens;
    const int whole = uncached / meta * meta;
    const int prefill = std::min(whole, prefill_budget);
    if (prefill == 0 && whole > 0) continue;  // its turn comes when older prompts are done
    prefill_budget -= prefill;

    Row row;
    row.cached_tokens = sequence->cached_tokens;
    row.decode = prefill == whole;
    row.input = std::span<const TokenId>(sequence->tokens)
                    .subspan(sequence->cached_tokens, row.decode ? uncached : prefill);
    row.pages = sequence->pages;
    row.mode = sequence->request.mode;
    row.sampling = sequence->request.sampling;
    rows_.push_back(row);
    row_sequences_.push_back(sequence.get());

    ++sequence->stats.steps;
    if (!sequence->stats.first_step.has_value()) sequence->stats.first_step = now;
  }
}

absl::Status Scheduler::CommitRows() {
  const int meta = shape_.meta_tokens;
  ++counters_.steps;
  counters_.step_rows += static_cast<int64_t>(rows_.size());
  for (size_t i = 0; i < rows_.size(); ++i) {
    Sequence& sequence = *row_sequences_[i];
    const int size = static_cast<int>(sequence.tokens.size());
    const int input_end = rows_[i].cached_tokens + static_cast<int>(rows_[i].input.size());
    if (!rows_[i].decode) {
      sequence.cached_tokens = input_end;
      continue;
    }
    const int boundary = (input_end / meta + 1) * meta;  // that the row was to decode to
    if (sequence.finished) {
      counters_.wasted_slots += boundary - size;
    } else if (size == boundary) {
      sequence.cached_tokens = size;
    } else {
      return absl::InternalError(
          absl::StrCat("the engine decoded row ", i, " to token ", size, ", expected ", boundary));
    }
  }
  RemoveFinished();
  return absl::OkStatus();
}

void Scheduler::EndEverything(SequenceEnd end) {
  const auto finish = [&](Sequence& sequence) {
    if (!sequence.finished) Finish(sequence, end);
  };
  for (const auto& sequence : running_) finish(*sequence);
  for (const auto& sequence : waiting_) finish(*sequence);
  RemoveFinished();
}

void Scheduler::Finish(Sequence& sequence, SequenceEnd end) {
  sequence.finished = true;
  sequence.stats.finished = clock_->Now();
  ++counters_.finished[static_cast<size_t>(end)];
  sequence.listener->OnFinish(end, sequence.stats);
  sequence.listener.reset();
}

void Scheduler::RemoveFinished() {
  for (const auto& sequence : running_) {
    if (sequence->finished) pages_.Free(sequence->pages);
  }
  const auto is_finished = [](const std::unique_ptr<Sequence>& s) { return s->finished; };
  std::erase_if(running_, is_finished);
  std::erase_if(waiting_, is_finished);
}

void Scheduler::PublishStats() {
  counters_.num_running = static_cast<int>(running_.size());
  counters_.num_waiting = static_cast<int>(waiting_.size());
  counters_.pages_in_use = pages_.num_pages() - pages_.num_free();
  counters_.num_pages = pages_.num_pages();
  std::lock_guard lock(mutex_);
  published_ = counters_;
}

}  // namespace photon
