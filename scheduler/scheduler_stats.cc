// What the scheduler says of itself, and whether it adds up.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "scheduler/scheduler.h"
#include "scheduler/sequence_state.h"

namespace photon {

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
      if (!sequence->is_probe()) ++stats.num_running;
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

// Without looking at every sequence: what is held now is told when the engine has work again.
void Scheduler::PublishCounters() {
  counters_.num_waiting = num_waiting_;
  std::lock_guard lock(mutex_);
  published_ = counters_;
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
