// What comes and goes: submissions, commands, tokens and ends.
#include "scheduler/scheduler.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "scheduler/sequence_state.h"

namespace photon {
namespace {

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// What engines that hold the same model must agree in, and do not.
std::vector<std::string> Differences(const EngineShape& first, const EngineShape& other) {
  std::vector<std::string> differences;
  const auto compare = [&](const char* name, int64_t a, int64_t b) {
    if (a == b) return;
    differences.push_back(
        absl::StrCat(name, ": ", first.device, " has ", a, ", ", other.device, " has ", b));
  };
  compare("vocab_size", first.vocab_size, other.vocab_size);
  compare("meta_tokens", first.meta_tokens, other.meta_tokens);
  compare("max_context", first.max_context, other.max_context);
  compare("page_tokens", first.page_tokens, other.page_tokens);
  compare("max_rows", first.max_rows, other.max_rows);
  compare("max_prefill_tokens", first.max_prefill_tokens, other.max_prefill_tokens);
  if (first.modes != other.modes) {
    differences.push_back(absl::StrCat("modes: ", first.device, " and ", other.device, " differ"));
  }
  return differences;
}

}  // namespace

int MaxSequenceTokens(const EngineShape& shape) {
  return shape.max_context / shape.meta_tokens * shape.meta_tokens;
}

DeviceStats& DeviceStats::operator+=(const DeviceStats& other) {
  num_running += other.num_running;
  num_paused += other.num_paused;
  pages_free += other.pages_free;
  pages_in_use += other.pages_in_use;
  pages_cached += other.pages_cached;
  pages_pinned += other.pages_pinned;
  num_pages += other.num_pages;
  num_pins += other.num_pins;
  return *this;
}

bool Scheduler::StepSink::OnTokens(int row, std::span<const SampledToken> tokens) {
  Sequence& sequence = *device_->step.sequences[row];
  if (sequence.exhausted || sequence.stop) return false;
  if (tokens.empty()) return true;

  const SequenceRequest& request = sequence.request;
  const int generated = sequence.num_generated() + static_cast<int>(sequence.sampled.size());
  const size_t room = request.max_tokens - generated;
  tokens = tokens.first(std::min(tokens.size(), room));
  const auto stop = std::find_if(tokens.begin(), tokens.end(), [&](const SampledToken& token) {
    return std::find(request.stop_tokens.begin(), request.stop_tokens.end(), token.token) !=
           request.stop_tokens.end();
  });
  sequence.exhausted = stop != tokens.end() || tokens.size() == room;
  if (stop != tokens.end()) tokens = tokens.first(stop - tokens.begin() + 1);
  for (const SampledToken& token : tokens) sequence.sampled.push_back(token.token);
  device_->thread.Publish(row, tokens, sequence.exhausted);
  return !sequence.exhausted;
}

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Create(std::span<Engine* const> engines,
                                                             const Clock* clock,
                                                             const SchedulerOptions& options) {
  std::vector<std::string> problems;
  if (engines.empty()) return absl::InvalidArgumentError("engines: expected at least 1, got 0");
  const EngineShape& shape = engines.front()->shape();
  const auto at_least = [&](const char* name, int64_t minimum, int64_t value) {
    if (value >= minimum) return;
    problems.push_back(absl::StrCat(name, ": expected at least ", minimum, ", got ", value));
  };
  const auto percent = [&](const char* name, int value) {
    if (value >= 0 && value <= 100) return;
    problems.push_back(absl::StrCat(name, ": expected 0 to 100, got ", value));
  };
  at_least("max_queue", 1, options.max_queue);
  percent("reserved_output_percent", options.reserved_output_percent);
  percent("max_pinned_percent", options.max_pinned_percent);
  at_least("max_pause", 0, options.max_pause.count());
  at_least("meta_tokens", 1, shape.meta_tokens);
  if (shape.meta_tokens >= 1) {
    if (shape.page_tokens < shape.meta_tokens || shape.page_tokens % shape.meta_tokens != 0) {
      problems.push_back(absl::StrCat("page_tokens: expected a multiple of meta_tokens (",
                                      shape.meta_tokens, "), got ", shape.page_tokens));
    }
    at_least("max_context", shape.meta_tokens, shape.max_context);
    at_least("max_prefill_tokens", shape.meta_tokens, shape.max_prefill_tokens);
  }
  at_least("max_rows", 1, shape.max_rows);
  for (const Engine* engine : engines) {
    at_least("num_pages", 1, engine->shape().num_pages);
    for (std::string& problem : Differences(shape, engine->shape())) {
      problems.push_back(std::move(problem));
    }
  }
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "; "));
  return std::unique_ptr<Scheduler>(new Scheduler(engines, clock, options));
}

Scheduler::Scheduler(std::span<Engine* const> engines, const Clock* clock,
                     const SchedulerOptions& options)
    : clock_(clock),
      options_(options),
      shape_(engines.front()->shape()),
      pinned_pages_(engines.size()) {
  for (Engine* engine : engines) {
    shape_.num_pages = std::max(shape_.num_pages, engine->shape().num_pages);
    devices_.push_back(std::make_unique<Device>(static_cast<int>(devices_.size()), engine, clock,
                                                &signal_, options.max_pinned_percent));
  }
  load_.devices.resize(devices_.size());
  counters_.devices.resize(devices_.size());
  PublishStats();
}

Scheduler::~Scheduler() {
  // Steps use their sequences until they end.
  for (bool is_computing = true; is_computing;) {
    is_computing = false;
    for (const auto& device : devices_) {
      if (!device->computing) continue;
      if (Follow(*device).has_value()) {
        for (Sequence* sequence : device->step.sequences) sequence->in_step = false;
      } else {
        is_computing = true;
      }
    }
    if (is_computing) signal_.Wait();
  }
  TakeInbox();
  DeliverLeftOver();
  EndEverything(SequenceEnd::kCancelled);
}

absl::Status Scheduler::CheckFits(const SequenceRequest& request) const {
  const int64_t limit = MaxSequenceTokens(shape_);
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  const bool is_pin = request.pin_until.has_value();
  if (prompt >= limit) {
    return Invalid("prompt: has ", prompt, " tokens; the context has ", limit,
                   " and the output needs at least one");
  }
  if (is_pin && request.max_tokens != 0) {
    return Invalid("max_tokens: expected 0 where the cache is only filled, got ",
                   request.max_tokens);
  }
  if (!is_pin && request.max_tokens < 1) {
    return Invalid("max_tokens: expected at least 1, got ", request.max_tokens);
  }
  if (prompt + request.max_tokens > limit) {
    return Invalid("max_tokens: a prompt of ", prompt, " tokens leaves ", limit - prompt,
                   " of the context's ", limit, ", got ", request.max_tokens);
  }
  const int needed = PagesNeeded(shape_, static_cast<int>(prompt) + request.max_tokens);
  if (needed > shape_.num_pages) {
    return Invalid("max_tokens: a prompt of ", prompt, " tokens and an output of ",
                   request.max_tokens, " need ", needed, " cache pages; ",
                   devices_.size() == 1 ? "the server" : "a device", " has ", shape_.num_pages);
  }
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= shape_.vocab_size) {
      return Invalid("prompt: token ", request.prompt[i], " at index ", i,
                     " is not in the vocabulary of ", shape_.vocab_size);
    }
  }
  if (std::find(shape_.modes.begin(), shape_.modes.end(), request.mode) == shape_.modes.end()) {
    return Invalid("mode: this checkpoint does not allow it");
  }
  return absl::OkStatus();
}

absl::StatusOr<SequenceId> Scheduler::Submit(SequenceRequest request,
                                             std::unique_ptr<SequenceListener> listener) {
  std::vector<Submission> submissions(1);
  submissions[0] = {std::move(request), std::move(listener)};
  const absl::StatusOr<std::vector<SequenceId>> ids = SubmitAll(std::move(submissions));
  if (!ids.ok()) return ids.status();
  return ids->front();
}

absl::StatusOr<std::vector<SequenceId>> Scheduler::SubmitAll(std::vector<Submission> submissions) {
  const TimePoint now = clock_->Now();
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (Submission& submission : submissions) {
    if (absl::Status status = CheckFits(submission.request); !status.ok()) return status;
    if (now >= submission.request.deadline) {
      return absl::DeadlineExceededError("the deadline has passed");
    }
    auto sequence = std::make_unique<Sequence>();
    sequence->tokens = std::move(submission.request.prompt);
    sequence->request = std::move(submission.request);
    sequence->listener = std::move(submission.listener);
    sequence->stats.prompt_tokens = sequence->num_tokens();
    sequence->stats.submitted = now;
    sequences.push_back(std::move(sequence));
  }
  const int count = static_cast<int>(sequences.size());
  if (count > options_.max_queue) {
    return Invalid("a call of ", count, " sequences; the queue takes ", options_.max_queue);
  }

  std::vector<SequenceId> ids;
  bool is_awaited = false;
  {
    std::lock_guard lock(mutex_);
    if (failed_) return absl::UnavailableError("the engine has failed");
    if (draining_) return absl::UnavailableError("the server is draining");
    const int num_queued = static_cast<int>(arrivals_.size()) + queued_;
    if (num_queued + count > options_.max_queue) {
      rejected_queue_full_ += count;
      return absl::ResourceExhaustedError(
          absl::StrCat("the queue is full: ", num_queued, " requests are waiting"));
    }
    std::vector<int> pinned_pages = pinned_pages_;
    for (const std::unique_ptr<Sequence>& sequence : sequences) {
      if (!sequence->is_pin()) continue;
      // Spread over the devices; where one fits is known now, not when its turn comes.
      Device& device =
          **std::min_element(devices_.begin(), devices_.end(), [&](const auto& a, const auto& b) {
            return pinned_pages[a->index] - a->max_pinned_pages <
                   pinned_pages[b->index] - b->max_pinned_pages;
          });
      const int needed = PagesNeeded(shape_, sequence->num_tokens());
      int& pinned = pinned_pages[device.index];
      if (pinned + needed > device.max_pinned_pages) {
        return absl::ResourceExhaustedError(
            absl::StrCat("pins may hold ", device.max_pinned_pages, " cache pages",
                         devices_.size() == 1 ? "" : " of a device", " and hold ", pinned,
                         devices_.size() == 1 ? "" : " at least", "; this one needs ", needed));
      }
      pinned += needed;
      sequence->device = &device;
    }
    pinned_pages_ = std::move(pinned_pages);
    for (std::unique_ptr<Sequence>& sequence : sequences) {
      sequence->id = SequenceId{next_id_++};
      ids.push_back(sequence->id);
      arrivals_.push_back(std::move(sequence));
    }
    is_awaited = watches_inbox_;
  }
  inbox_changed_.notify_one();
  if (is_awaited) signal_.Raise();
  return ids;
}

void Scheduler::Send(const Command& command) {
  bool is_awaited = false;
  {
    std::lock_guard lock(mutex_);
    commands_.push_back(command);
    is_awaited = watches_inbox_;
  }
  inbox_changed_.notify_one();
  if (is_awaited) signal_.Raise();
}

void Scheduler::Cancel(SequenceId id) {
  Send({.kind = Command::Kind::kCancel, .sequence = id});
}

void Scheduler::Pause(SequenceId id) {
  Send({.kind = Command::Kind::kPause, .sequence = id});
}

void Scheduler::Resume(SequenceId id) {
  Send({.kind = Command::Kind::kResume, .sequence = id});
}

void Scheduler::ExtendPin(PinId pin, TimePoint until) {
  Send({.kind = Command::Kind::kMovePin, .pin = pin, .until = until});
}

void Scheduler::Unpin(PinId pin) {
  ExtendPin(pin, TimePoint::min());
}

void Scheduler::Drain(TimePoint deadline) {
  {
    std::lock_guard lock(mutex_);
    draining_ = true;
    drain_deadline_ = deadline;
  }
  inbox_changed_.notify_one();
}

CostEstimate Scheduler::Estimate(int prompt_tokens, int max_tokens) const {
  CostEstimate estimate;
  const int64_t tokens = int64_t{prompt_tokens} + max_tokens;
  if (prompt_tokens < 0 || max_tokens < 0 || tokens > MaxSequenceTokens(shape_)) return estimate;
  estimate.pages = PagesNeeded(shape_, static_cast<int>(tokens));
  estimate.fits = estimate.pages <= shape_.num_pages;

  std::lock_guard lock(mutex_);
  const bool has_room =
      std::any_of(load_.devices.begin(), load_.devices.end(), [&](const Load::OfDevice& device) {
        return device.free_rows > 0 && estimate.pages <= device.available_pages;
      });
  estimate.fits_now = estimate.fits && has_room && load_.waiting_cost == 0;
  if (estimate.fits_now) return estimate;
  const Duration step_time = published_.recent_step_time;
  if (load_.step_cost > 0) {
    estimate.expected_wait +=
        step_time * load_.waiting_cost / (load_.step_cost * static_cast<int64_t>(devices_.size()));
  }
  if (!has_room) estimate.expected_wait += step_time * load_.steps_to_next_end;
  return estimate;
}

SchedulerStats Scheduler::stats() const {
  std::lock_guard lock(mutex_);
  SchedulerStats stats = published_;
  stats.num_waiting += static_cast<int>(arrivals_.size());
  stats.rejected_queue_full = rejected_queue_full_;
  return stats;
}

bool Scheduler::WaitForWork() {
  TimePoint wake = NextDeadline();
  const bool has_sequences = !by_id_.empty();
  std::unique_lock lock(mutex_);
  const TimePoint drain_deadline = drain_deadline_;
  if (has_sequences) wake = std::min(wake, drain_deadline);
  const auto has_news = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !idle_ || !arrivals_.empty() || !commands_.empty() || failed_ ||
           (draining_ && !has_sequences) || drain_deadline_ != drain_deadline;
  };
  const TimePoint now = clock_->Now();
  if (wake == TimePoint::max()) {
    inbox_changed_.wait(lock, has_news);
  } else if (now < wake) {
    inbox_changed_.wait_for(lock, wake - now, has_news);
  }
  if (failed_) return false;
  return !draining_ || has_sequences || !idle_ || !arrivals_.empty();
}

absl::Status Scheduler::RunStep() {
  TakeInbox();
  const TimePoint now = clock_->Now();
  EndOverdue(now);
  RemoveEnded();
  const size_t num_ended = ended_.size();
  const int64_t num_preempted = counters_.preemptions;
  Admit();
  // What was cached already ends there, and must not be preempted.
  RemoveEnded();
  size_t num_computing = 0;
  for (const auto& device : devices_) {
    if (!device->computing) StartStep(*device, now);
    if (device->computing) ++num_computing;
  }
  if (num_computing == 0) {
    DeliverLeftOver();
    RemoveEnded();
    // What made room only after the admissions calls for another round of them.
    idle_ = ended_.size() == num_ended && counters_.preemptions == num_preempted;
    ended_.clear();
    PublishStats();
    return absl::OkStatus();
  }
  idle_ = false;

  // While the engines compute: the steps before are written out, the next ones prepared.
  PublishStats();
  DeliverLeftOver();
  if (num_computing == devices_.size()) {
    ended_.clear();
    TakeInbox();
    EndOverdue(clock_->Now());
    Admit();
    return AwaitStep(/*watch_inbox=*/false);
  }
  // An engine stands still: what comes, or finds room now, calls for another round.
  RemoveEnded();
  const bool made_room = ended_.size() != num_ended || counters_.preemptions != num_preempted;
  ended_.clear();
  if (made_room && num_waiting_ > 0) return absl::OkStatus();
  return AwaitStep(/*watch_inbox=*/true);
}

// Delivers what the steps publish until one of them has ended, or the inbox has something.
absl::Status Scheduler::AwaitStep(bool watch_inbox) {
  const auto has_news = [&] {
    if (!watch_inbox) return false;
    std::lock_guard lock(mutex_);
    watches_inbox_ = arrivals_.empty() && commands_.empty();
    return !watches_inbox_;
  };
  absl::Status status;
  for (bool has_ended = false; !has_ended && status.ok() && !has_news();) {
    signal_.Wait();
    for (const auto& device : devices_) {
      const std::optional<StepResult> result = Follow(*device);
      if (!result.has_value()) continue;
      has_ended = true;
      status.Update(EndStep(*device, *result));
    }
  }
  if (watch_inbox) {
    std::lock_guard lock(mutex_);
    watches_inbox_ = false;
  }
  PublishStats();
  return status;
}

// Delivers what a device's step has published, but for what it published last: that is left over
// when the step's result is returned.
std::optional<StepResult> Scheduler::Follow(Device& device) {
  if (!device.computing) return std::nullopt;
  std::optional<StepResult> result = device.thread.Take(batch_);
  if (!result.has_value()) {
    Deliver(batch_, device.step.sequences);
    return std::nullopt;
  }
  device.computing = false;
  std::swap(device.left_over, batch_);
  device.left_over_sequences = device.step.sequences;
  return result;
}

absl::Status Scheduler::EndStep(Device& device, const StepResult& result) {
  absl::Status status = result.status;
  if (status.ok()) status = Commit(device, result);
  if (status.ok()) return status;
  {
    std::lock_guard lock(mutex_);
    failed_ = true;
  }
  for (Sequence* sequence : device.step.sequences) sequence->in_step = false;
  DeliverLeftOver();
  TakeInbox();
  EndEverything(SequenceEnd::kEngineFailed);
  if (devices_.size() == 1) return status;
  return absl::Status(status.code(), absl::StrCat(device.shape.device, ": ", status.message()));
}

void Scheduler::TakeInbox() {
  std::vector<std::unique_ptr<Sequence>> arrivals;
  std::vector<Command> commands;
  {
    std::lock_guard lock(mutex_);
    arrivals.swap(arrivals_);
    commands.swap(commands_);
    // Nobody sees them uncounted in between.
    queued_ += static_cast<int>(arrivals.size());
    published_.num_waiting += static_cast<int>(arrivals.size());
  }
  for (std::unique_ptr<Sequence>& sequence : arrivals) {
    shares_.Enter(sequence->request.tenant);
    by_id_.emplace(sequence->id, sequence.get());
    const TimePoint deadline = sequence->request.deadline;
    if (deadline != TimePoint::max()) deadlines_.emplace(deadline, sequence->id);
    Enqueue(std::move(sequence));
  }
  for (const Command& command : commands) Obey(command);
}

void Scheduler::Obey(const Command& command) {
  if (command.kind == Command::Kind::kMovePin) {
    const auto pin = pins_.find(command.pin);
    if (pin == pins_.end()) return;
    pin->second.until = command.until;
    if (command.until == TimePoint::min()) RemovePin(command.pin);
    return;
  }
  const auto found = by_id_.find(command.sequence);
  if (found == by_id_.end()) return;
  Sequence& sequence = *found->second;
  switch (command.kind) {
    case Command::Kind::kCancel:
      End(sequence, SequenceEnd::kCancelled);
      return;
    case Command::Kind::kPause:
      if (sequence.paused.has_value()) return;
      sequence.paused = clock_->Now();
      stalls_.emplace(StallTime(sequence), sequence.id);
      return;
    case Command::Kind::kResume:
      if (!sequence.paused.has_value()) return;
      stalls_.erase({StallTime(sequence), sequence.id});
      sequence.paused.reset();
      return;
    case Command::Kind::kMovePin:
      return;
  }
}

void Scheduler::EndOverdue(TimePoint now) {
  TimePoint drain_deadline;
  {
    std::lock_guard lock(mutex_);
    drain_deadline = drain_deadline_;
  }
  if (now >= drain_deadline) {
    DeliverLeftOver();
    return EndEverything(SequenceEnd::kDrained);
  }
  std::vector<std::pair<Sequence*, SequenceEnd>> overdue;
  const auto collect = [&](const std::set<Turn>& ends, SequenceEnd end) {
    for (const auto& [time, id] : ends) {
      if (now < time) return;
      overdue.emplace_back(by_id_.at(id), end);
    }
  };
  collect(deadlines_, SequenceEnd::kDeadline);
  collect(stalls_, SequenceEnd::kStalled);
  for (const auto& [sequence, end] : overdue) {
    // It may have had two reasons to end.
    if (!sequence->end.has_value()) End(*sequence, end);
  }
  overdue.clear();
  // Those that wait, as far as any prompt could be too long for what time they have.
  const TimePoint safe = now + FastestStep() * StepsToFirstToken(shape_.max_context);
  for (const auto& [key, lane] : waiting_) {
    for (const auto& [turn, sequence] : lane) {
      if (turn.first >= safe) break;
      if (!CanAnswer(*sequence, now)) overdue.emplace_back(sequence.get(), SequenceEnd::kDeadline);
    }
  }
  counters_.rejected_deadline += static_cast<int64_t>(overdue.size());
  for (const auto& [sequence, end] : overdue) End(*sequence, end);
  while (true) {
    const auto expired = std::find_if(pins_.begin(), pins_.end(),
                                      [&](const auto& pin) { return now >= pin.second.until; });
    if (expired == pins_.end()) return;
    RemovePin(expired->first);
  }
}

TimePoint Scheduler::StallTime(const Sequence& sequence) const {
  const TimePoint since = *sequence.paused;
  return options_.max_pause < TimePoint::max() - since ? since + options_.max_pause
                                                       : TimePoint::max();
}

Duration Scheduler::FastestStep() const {
  return *std::min_element(last_step_times_.begin(), last_step_times_.end());
}

// Whether a sequence that waits can have a token by its deadline, even if it is admitted now and
// every step is as fast as the fastest of late.
bool Scheduler::CanAnswer(const Sequence& sequence, TimePoint now) const {
  const Duration step_time = FastestStep();
  if (now + step_time * StepsToFirstToken(sequence.num_tokens()) <= sequence.request.deadline) {
    return true;
  }
  return now + step_time * StepsToFirstToken(sequence.num_tokens() - CountCached(sequence)) <=
         sequence.request.deadline;
}

// Where most of it is.
int Scheduler::CountCached(const Sequence& sequence) const {
  int cached = 0;
  for (const auto& device : devices_) {
    cached = std::max(cached, device->pool.CountCached(sequence.request.tenant, sequence.tokens));
  }
  return cached;
}

void Scheduler::Deliver(const TokenBatch& batch, const std::vector<Sequence*>& sequences) {
  std::vector<SampledToken> tokens;
  for (const TokenBatch::Event& event : batch.events) {
    Sequence& sequence = *sequences[event.row];
    const bool counts = !sequence.request.is_probe;
    if (sequence.end.has_value()) {
      if (counts) counters_.wasted_slots += event.count;
      continue;
    }
    tokens.clear();
    for (int i = event.first; i < event.first + event.count; ++i) {
      const TokenBatch::Token& token = batch.tokens[i];
      tokens.push_back({.token = token.id,
                        .logprob = token.logprob,
                        .top = std::span(batch.top).subspan(token.first_top, token.num_top)});
    }
    SequenceStats& stats = sequence.stats;
    if (!stats.first_token.has_value()) stats.first_token = event.time;
    const std::optional<size_t> wanted = sequence.listener->OnTokens(tokens);
    const int accepted = static_cast<int>(std::min(wanted.value_or(tokens.size()), tokens.size()));
    stats.generated_tokens += accepted;
    if (counts) {
      counters_.generated_tokens += accepted;
      counters_.wasted_slots += event.count - accepted;
    }
    if (wanted.has_value()) {
      Finish(sequence, SequenceEnd::kListener);
    } else if (event.last) {
      const bool is_full = stats.generated_tokens == sequence.request.max_tokens;
      Finish(sequence, is_full ? SequenceEnd::kLength : SequenceEnd::kStopToken);
    }
    // It may have been preempted since the step that these tokens are of.
    if (sequence.end.has_value() && !sequence.running) Forget(sequence);
  }
}

void Scheduler::Flush() {
  DeliverLeftOver();
  RemoveEnded();
  PublishStats();
}

void Scheduler::DeliverLeftOver() {
  for (const auto& device : devices_) {
    Deliver(device->left_over, device->left_over_sequences);
    device->left_over.Clear();
    device->left_over_sequences.clear();
  }
}

// The listener hears the end; the scheduler lets go of the sequence when the engine has.
void Scheduler::Finish(Sequence& sequence, SequenceEnd end) {
  sequence.end = end;
  sequence.stop = true;
  sequence.stats.finished = clock_->Now();
  if (!sequence.request.is_probe) ++counters_.finished[static_cast<size_t>(end)];
  sequence.listener->OnFinish(end, sequence.stats);
  sequence.listener.reset();
}

void Scheduler::End(Sequence& sequence, SequenceEnd end) {
  if (!sequence.end.has_value() && !sequence.leaving) {
    if (sequence.is_pin()) {
      std::lock_guard lock(mutex_);
      pinned_pages_[sequence.device->index] -= PagesNeeded(shape_, sequence.stats.prompt_tokens);
    }
    Finish(sequence, end);
  }
  if (!sequence.running) Forget(sequence);
}

void Scheduler::Unlist(Sequence& sequence) {
  by_id_.erase(sequence.id);
  deadlines_.erase({sequence.request.deadline, sequence.id});
  if (sequence.paused.has_value()) stalls_.erase({StallTime(sequence), sequence.id});
  shares_.Leave(sequence.request.tenant);
}

// A waiting sequence that has ended.
void Scheduler::Forget(Sequence& sequence) {
  Unlist(sequence);
  ended_.push_back(Dequeue(sequence));
}

void Scheduler::EndEverything(SequenceEnd end) {
  std::vector<Sequence*> sequences;
  for (const auto& [id, sequence] : by_id_) sequences.push_back(sequence);
  std::sort(sequences.begin(), sequences.end(),
            [](const Sequence* a, const Sequence* b) { return a->id < b->id; });
  for (Sequence* sequence : sequences) End(*sequence, end);
  RemoveEnded();
}

void Scheduler::RemoveEnded() {
  const auto is_done = [](const std::unique_ptr<Sequence>& sequence) {
    return !sequence->in_step && (sequence->end.has_value() || sequence->leaving);
  };
  for (const auto& device : devices_) {
    for (std::unique_ptr<Sequence>& sequence : device->running) {
      if (!is_done(sequence)) continue;
      device->pool.Close(sequence->table);
      Unlist(*sequence);
      ended_.push_back(std::move(sequence));
    }
    std::erase(device->running, nullptr);
  }
}

void Scheduler::RemovePin(PinId pin) {
  const auto found = pins_.find(pin);
  {
    std::lock_guard lock(mutex_);
    pinned_pages_[found->second.device->index] -= found->second.pages;
  }
  found->second.device->pool.Unpin(pin);
  pins_.erase(found);
}

absl::Status Scheduler::Commit(Device& device, const StepResult& result) {
  const Step& step = device.step;
  const int meta = shape_.meta_tokens;
  const Duration time = result.end - result.begin;
  const bool is_probe =
      std::all_of(step.sequences.begin(), step.sequences.end(),
                  [](const Sequence* sequence) { return sequence->request.is_probe; });
  if (!is_probe) {
    last_step_times_[counters_.steps % last_step_times_.size()] = time;
    const bool is_first = counters_.steps == 0;
    counters_.recent_step_time = is_first ? time : (7 * counters_.recent_step_time + time) / 8;
    recent_step_cost_ = is_first ? step.cost : (7 * recent_step_cost_ + step.cost) / 8;
    counters_.step_time += time;
    ++counters_.steps;
    counters_.step_rows += static_cast<int64_t>(step.rows.size());
  }
  if (device.last_step_end.has_value()) counters_.host_time += result.begin - *device.last_step_end;
  device.last_step_end = result.end;

  for (size_t i = 0; i < step.rows.size(); ++i) {
    Sequence& sequence = *step.sequences[i];
    const Row& row = step.rows[i];
    sequence.in_step = false;
    const int input_end = row.cached_tokens + static_cast<int>(row.input.size());
    const int boundary = (input_end / meta + 1) * meta;  // that a row that decodes goes to
    int cached_end = input_end / meta * meta;
    if (row.decode) {
      sequence.tokens.insert(sequence.tokens.end(), sequence.sampled.begin(),
                             sequence.sampled.end());
      if (!sequence.request.is_probe) counters_.wasted_slots += boundary - sequence.num_tokens();
      if (sequence.exhausted) {
        sequence.leaving = true;
      } else if (sequence.num_tokens() == boundary) {
        cached_end = boundary;
      } else if (!sequence.stop) {
        return absl::InternalError(absl::StrCat("the engine decoded row ", i, " to token ",
                                                sequence.num_tokens(), ", expected ", boundary));
      }
    }
    device.pool.Commit(sequence.table, sequence.tokens, cached_end, sequence.shareable_tokens);
    if (sequence.is_pin()) CommitPin(sequence);
  }
  RemoveEnded();
  return absl::OkStatus();
}

// The cache of a request that only fills it.
void Scheduler::CommitPin(Sequence& sequence) {
  const int meta = shape_.meta_tokens;
  if (sequence.table.cached_tokens < sequence.num_tokens() / meta * meta) return;
  if (sequence.end.has_value()) return;
  const PinId pin{next_pin_++};
  sequence.device->pool.Pin(pin, sequence.table);
  pins_[pin] = {.until = *sequence.request.pin_until,
                .pages = PagesNeeded(shape_, sequence.num_tokens()),
                .device = sequence.device};
  sequence.stats.pin = pin;
  Finish(sequence, SequenceEnd::kLength);
}

// When something ends by itself, drains aside, though nothing may run until then.
TimePoint Scheduler::NextDeadline() const {
  TimePoint next = TimePoint::max();
  if (!deadlines_.empty()) next = std::min(next, deadlines_.begin()->first);
  if (!stalls_.empty()) next = std::min(next, stalls_.begin()->first);
  for (const auto& [id, pin] : pins_) next = std::min(next, pin.until);
  return next;
}

void Scheduler::PublishStats() {
  int steps_to_next_end = 0;
  counters_.evictions = 0;
  static_cast<DeviceStats&>(counters_) = {};
  for (const auto& device : devices_) {
    DeviceStats& stats = counters_.devices[device->index];
    const LatentPool& pool = device->pool;
    stats = {.pages_free = pool.num_free(),
             .pages_in_use = pool.num_in_use(),
             .pages_cached = pool.num_cached(),
             .pages_pinned = pool.num_pinned(),
             .num_pages = pool.num_pages(),
             .num_pins = pool.num_pins()};
    for (const auto& sequence : device->running) {
      if (!sequence->request.is_probe) ++stats.num_running;
      if (sequence->paused.has_value()) {
        ++stats.num_paused;
        continue;
      }
      const int left =
          (sequence->max_tokens_total() - sequence->num_tokens()) / shape_.meta_tokens + 1;
      steps_to_next_end = steps_to_next_end == 0 ? left : std::min(steps_to_next_end, left);
    }
    counters_ += stats;
    counters_.evictions += pool.evictions();
  }
  counters_.num_waiting = num_waiting_;
  std::lock_guard lock(mutex_);
  published_ = counters_;
  queued_ = num_queued_;
  load_.waiting_cost = waiting_cost_;
  load_.step_cost = recent_step_cost_;
  load_.steps_to_next_end = steps_to_next_end;
  for (const auto& device : devices_) {
    const DeviceStats& stats = counters_.devices[device->index];
    load_.devices[device->index] = {
        .available_pages = device->pool.num_available(),
        .free_rows = shape_.max_rows - (stats.num_running - stats.num_paused)};
  }
}

void Scheduler::CheckInvariants() const {
  const auto check = [](bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "Scheduler: %s\n", what);
    std::abort();
  };
  size_t num_running = 0;
  for (const auto& device : devices_) {
    std::vector<const PageTable*> tables;
    for (const auto& sequence : device->running) {
      check(sequence->running, "a waiting sequence is among the running ones");
      check(sequence->device == device.get(), "a sequence runs on another device than it thinks");
      check(by_id_.contains(sequence->id), "a running sequence is not known by its id");
      tables.push_back(&sequence->table);
    }
    num_running += tables.size();
    device->pool.CheckInvariants(tables);
  }

  int num_waiting = 0;
  int num_queued = 0;
  int64_t waiting_cost = 0;
  for (const auto& [key, lane] : waiting_) {
    check(!lane.empty(), "a lane without sequences is remembered");
    for (const auto& [turn, sequence] : lane) {
      check(!sequence->running && sequence->table.pages.empty(), "a waiting sequence has pages");
      check(!sequence->end.has_value(), "a sequence waits that has ended");
      check(by_id_.contains(sequence->id), "a waiting sequence is not known by its id");
      ++num_waiting;
      if (!sequence->stats.first_step.has_value()) ++num_queued;
      waiting_cost += sequence->waiting_cost;
    }
  }
  check(num_waiting == num_waiting_ && num_queued == num_queued_ && waiting_cost == waiting_cost_,
        "what waits does not add up");
  check(by_id_.size() == num_running + num_waiting, "a sequence neither runs nor waits");
  size_t num_deadlines = 0;
  size_t num_paused = 0;
  for (const auto& [id, sequence] : by_id_) {
    if (sequence->request.deadline != TimePoint::max()) ++num_deadlines;
    if (sequence->paused.has_value()) ++num_paused;
  }
  check(num_deadlines == deadlines_.size() && num_paused == stalls_.size(),
        "what ends by itself does not add up");

  std::vector<int> pinned_pages(devices_.size());
  std::vector<int> num_pins(devices_.size());
  for (const auto& [id, pin] : pins_) {
    pinned_pages[pin.device->index] += pin.pages;
    ++num_pins[pin.device->index];
  }
  for (const auto& [id, sequence] : by_id_) {
    if (sequence->is_pin() && !sequence->end.has_value()) {
      pinned_pages[sequence->device->index] += PagesNeeded(shape_, sequence->stats.prompt_tokens);
    }
  }
  std::lock_guard lock(mutex_);
  for (const auto& sequence : arrivals_) {
    if (sequence->is_pin()) {
      pinned_pages[sequence->device->index] += PagesNeeded(shape_, sequence->num_tokens());
    }
  }
  check(pinned_pages == pinned_pages_, "pinned pages do not add up");
  for (const auto& device : devices_) {
    check(num_pins[device->index] == device->pool.num_pins(), "a pin is lost");
    check(pinned_pages[device->index] <= device->max_pinned_pages, "pins hold more than they may");
  }
}

}  // namespace photon
