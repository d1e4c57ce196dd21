// What listeners hear, and when and how sequences and pins end.
#include <algorithm>
#include <utility>

#include "scheduler/scheduler.h"
#include "scheduler/sequence_state.h"

namespace photon {

// Delivers what a step of `sequences` has published.
void Scheduler::Deliver(Device& device, const std::vector<Sequence*>& sequences,
                        bool until_a_step_ends) {
  const TokenBatch& batch = device.published;
  std::vector<SampledToken> tokens;
  while (device.num_delivered < batch.events.size()) {
    if (until_a_step_ends && signal_.has_ended()) return;
    const TokenBatch::Event& event = batch.events[device.num_delivered++];
    Sequence& sequence = *sequences[event.row];
    const bool counts = !sequence.is_probe();
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
  device.published.Clear();
  device.num_delivered = 0;
}

// Also of steps that are still being computed, of which the end of another one kept it.
void Scheduler::DeliverLeftOver() {
  for (const auto& device : devices_) {
    const bool is_over = !device->published_by.empty();
    Deliver(*device, is_over ? device->published_by : device->step.sequences,
            /*until_a_step_ends=*/false);
    device->published_by.clear();
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

// When something ends by itself, drains aside, though nothing may run until then.
TimePoint Scheduler::NextDeadline() const {
  TimePoint next = TimePoint::max();
  if (!deadlines_.empty()) next = std::min(next, deadlines_.begin()->first);
  if (!stalls_.empty()) next = std::min(next, stalls_.begin()->first);
  for (const auto& [id, pin] : pins_) next = std::min(next, pin.until);
  return next;
}

// The listener hears the end; the scheduler lets go of the sequence when the engine has.
void Scheduler::Finish(Sequence& sequence, SequenceEnd end) {
  sequence.end = end;
  sequence.stop = true;
  sequence.stats.finished = clock_->Now();
  if (!sequence.is_probe()) ++counters_.finished[static_cast<size_t>(end)];
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

// Sequences that have ended let go of their pages. True: there were any.
bool Scheduler::RemoveEnded() {
  const size_t num_ended = ended_.size();
  const auto is_done = [](const std::unique_ptr<Sequence>& sequence) {
    return !sequence->in_step && (sequence->end.has_value() || sequence->leaving);
  };
  for (const auto& device : devices_) {
    for (std::unique_ptr<Sequence>& sequence : device->running) {
      if (!is_done(sequence)) continue;
      CloseTable(*sequence);
      Unlist(*sequence);
      ended_.push_back(std::move(sequence));
    }
    std::erase(device->running, nullptr);
  }
  return ended_.size() != num_ended;
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

}  // namespace photon
