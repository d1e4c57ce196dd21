#include "scheduler/step_thread.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"

namespace photon {
namespace {

// A step that throws, as where memory cannot be allocated, has lost its pages like one whose device
// fails.
absl::Status StepOrFail(Engine& engine, std::span<const PageCopy> copies, std::span<const Row> rows,
                        TokenSink& sink) {
  try {
    return engine.Step(copies, rows, sink);
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("a step threw: ", error.what()));
  }
}

}  // namespace

void TokenBatch::Clear() {
  events.clear();
  tokens.clear();
  top.clear();
}

void TokenBatch::Add(int row, std::span<const SampledToken> sampled, bool last, TimePoint time) {
  events.push_back({.row = row,
                    .first = static_cast<int>(tokens.size()),
                    .count = static_cast<int>(sampled.size()),
                    .last = last,
                    .time = time});
  for (const SampledToken& token : sampled) {
    tokens.push_back({.id = token.token,
                      .logprob = token.logprob,
                      .first_top = static_cast<int>(top.size()),
                      .num_top = static_cast<int>(token.top.size())});
    top.insert(top.end(), token.top.begin(), token.top.end());
  }
}

void TokenBatch::TakeOver(TokenBatch& later) {
  if (events.empty()) {
    std::swap(*this, later);
    return later.Clear();
  }
  const int num_tokens = static_cast<int>(tokens.size()), num_top = static_cast<int>(top.size());
  for (Event event : later.events) {
    event.first += num_tokens;
    events.push_back(event);
  }
  for (Token token : later.tokens) {
    token.first_top += num_top;
    tokens.push_back(token);
  }
  top.insert(top.end(), later.top.begin(), later.top.end());
  later.Clear();
}

void StepSignal::Raise() {
  {
    std::lock_guard lock(mutex_);
    raised_ = true;
  }
  changed_.notify_one();
}

void StepSignal::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(
      lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return num_ready_ > 0 || raised_; });
  raised_ = false;
}

StepThread::StepThread(Engine* engine, const Clock* clock, StepSignal* signal)
    : engine_(engine), clock_(clock), signal_(signal), thread_([this] { Run(); }) {}

StepThread::~StepThread() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  step_started_.notify_one();
  thread_.join();
}

void StepThread::Start(std::span<const PageCopy> copies, std::span<const Row> rows,
                       TokenSink* sink) {
  {
    std::lock_guard lock(mutex_);
    copies_ = copies;
    rows_ = rows;
    sink_ = sink;
  }
  step_started_.notify_one();
}

void StepThread::Report(int row, std::span<const SampledToken> tokens, bool last) {
  if (reported_.events.empty()) report_time_ = clock_->Now();
  reported_.Add(row, tokens, last, report_time_);
}

void StepThread::Publish() {
  if (reported_.events.empty()) return;
  bool was_ready = false;
  {
    std::lock_guard lock(signal_->mutex_);
    was_ready = IsReady();
    published_.TakeOver(reported_);
    if (!was_ready) ++signal_->num_ready_;
  }
  if (!was_ready) signal_->changed_.notify_one();
}

std::optional<StepResult> StepThread::Take(TokenBatch& batch) {
  std::lock_guard lock(signal_->mutex_);
  if (IsReady()) --signal_->num_ready_;
  batch.TakeOver(published_);
  if (result_.has_value()) --signal_->num_ended_;
  return std::exchange(result_, std::nullopt);
}

void StepThread::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    step_started_.wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return sink_ != nullptr || stopping_;
    });
    if (sink_ == nullptr) return;
    const std::span<const PageCopy> copies = copies_;
    const std::span<const Row> rows = rows_;
    TokenSink& sink = *std::exchange(sink_, nullptr);
    lock.unlock();
    StepResult result;
    result.begin = clock_->Now();
    result.status = StepOrFail(*engine_, copies, rows, sink);
    result.end = clock_->Now();
    {
      std::lock_guard done(signal_->mutex_);
      if (!IsReady()) ++signal_->num_ready_;
      published_.TakeOver(reported_);
      result_ = std::move(result);
      ++signal_->num_ended_;
    }
    signal_->changed_.notify_one();
    lock.lock();
  }
}

}  // namespace photon
