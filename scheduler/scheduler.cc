// The step: engines compute it, listeners hear it, the pool keeps what it cached.
#include "scheduler/scheduler.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "scheduler/sequence_state.h"

namespace photon {
namespace {

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
  device_->thread.Report(row, tokens, sequence.exhausted);
  return !sequence.exhausted;
}

void Scheduler::StepSink::OnSlotEnd() {
  device_->thread.Publish();
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
  const size_t num_ended = ended_.size();
  const int64_t num_preempted = counters_.preemptions;
  Admit();
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

  // While the engines compute: what has ended lets go of its pages, the steps before are written
  // out, the next ones prepared.
  RemoveEnded();
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
  if (!status.ok()) {
    PublishStats();
  } else {
    PublishCounters();
  }
  return status;
}

// Delivers what a device's step has published, until a step ends: engines do not stand still for
// it. What is left when the step's result is returned is delivered during the next one.
std::optional<StepResult> Scheduler::Follow(Device& device) {
  if (!device.computing) return std::nullopt;
  std::optional<StepResult> result = device.thread.Take(device.published);
  if (result.has_value()) {
    device.computing = false;
    device.published_by = device.step.sequences;
  } else {
    Deliver(device, device.step.sequences, /*until_a_step_ends=*/true);
  }
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

absl::Status Scheduler::Commit(Device& device, const StepResult& result) {
  const Step& step = device.step;
  const int meta = shape_.meta_tokens;
  const Duration time = result.end - result.begin;
  const bool is_probe = std::all_of(step.sequences.begin(), step.sequences.end(),
                                    [](const Sequence* sequence) { return sequence->is_probe(); });
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
  device.last_step_begin = result.begin;
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
      if (!sequence.is_probe()) counters_.wasted_slots += boundary - sequence.num_tokens();
      if (sequence.exhausted) {
        sequence.leaving = true;
      } else if (sequence.num_tokens() == boundary) {
        cached_end = boundary;
      } else if (!sequence.stop) {
        return absl::InternalError(absl::StrCat("the engine decoded row ", i, " to token ",
                                                sequence.num_tokens(), ", expected ", boundary));
      }
    }
    // To share pages takes time that the engine stands still. What is decoded is shared when its
    // sequence lets go of it.
    const bool has_prefilled = input_end - row.cached_tokens >= meta;
    if (has_prefilled) {
      device.pool.Commit(sequence.table, sequence.tokens, cached_end, sequence.shareable_tokens);
    } else {
      device.pool.Advance(sequence.table, cached_end);
    }
    if (sequence.is_pin()) CommitPin(sequence);
  }
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

void Scheduler::Flush() {
  DeliverLeftOver();
  RemoveEnded();
  PublishStats();
}

}  // namespace photon
