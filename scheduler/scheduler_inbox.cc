// What comes from other threads: submissions and commands.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "scheduler/scheduler.h"
#include "scheduler/sequence_state.h"

namespace photon {
namespace {

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

}  // namespace

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
  // A probe of many devices must not need a long queue.
  const int count =
      static_cast<int>(std::count_if(sequences.begin(), sequences.end(),
                                     [](const auto& sequence) { return !sequence->is_probe(); }));
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
      if (sequence->is_probe()) sequence->device = devices_[*sequence->request.probed_device].get();
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

}  // namespace photon
