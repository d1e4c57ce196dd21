// Whose turn it is: admission, preemption, and the rows of a step.
#include <algorithm>
#include <queue>

#include "scheduler/scheduler.h"
#include "scheduler/sequence_state.h"

namespace photon {
namespace {

// What tokens cost in the tenants' accounts: a token that is generated takes about seven times the
// arithmetic of one that is prefilled at the reference shapes.
constexpr int64_t kPrefillCost = 1;
constexpr int64_t kDecodeCost = 7;

// A lane, or the running sequences of one, in the round of turns.
template <typename Iterator>
struct Turns {
  Priority priority{};
  TenantId tenant{};
  int64_t counter = 0;
  int num_rows = 0;  // that run: who has just come goes before who is served already
  Iterator next;
  Iterator end;

  // Whether `b` goes first.
  friend bool operator<(const Turns& a, const Turns& b) {
    return std::tie(a.priority, b.counter, b.num_rows, b.tenant) <
           std::tie(b.priority, a.counter, a.num_rows, a.tenant);
  }
};

}  // namespace

void Scheduler::Enqueue(std::unique_ptr<Sequence> sequence) {
  ++num_waiting_;
  if (!sequence->stats.first_step.has_value()) ++num_queued_;
  sequence->waiting_cost = CostLeft(*sequence);
  waiting_cost_ += sequence->waiting_cost;
  const LaneKey lane{sequence->request.priority, sequence->request.tenant};
  const Turn turn{sequence->request.deadline, sequence->id};
  waiting_[lane].emplace(turn, std::move(sequence));
}

std::unique_ptr<Scheduler::Sequence> Scheduler::Dequeue(Sequence& sequence) {
  const auto lane = waiting_.find({sequence.request.priority, sequence.request.tenant});
  auto node = lane->second.extract(Turn{sequence.request.deadline, sequence.id});
  if (lane->second.empty()) waiting_.erase(lane);
  --num_waiting_;
  if (!sequence.stats.first_step.has_value()) --num_queued_;
  waiting_cost_ -= sequence.waiting_cost;
  return std::move(node.mapped());
}

void Scheduler::Admit() {
  if (waiting_.empty()) return;
  Occupancy occupancy = CountOccupancy();
  TimePoint last_step_begin = TimePoint::max();
  for (const auto& device : devices_) {
    last_step_begin = std::min(last_step_begin, device->last_step_begin);
  }
  bool has_removed = false;
  std::priority_queue<Turns<Lane::iterator>> turns;
  for (auto& [key, lane] : waiting_) {
    const auto rows = occupancy.by_tenant.find(key.tenant);
    turns.push({.priority = key.priority,
                .tenant = key.tenant,
                .counter = shares_.counter(key.tenant),
                .num_rows = rows == occupancy.by_tenant.end() ? 0 : rows->second,
                .next = lane.begin(),
                .end = lane.end()});
  }
  while (!turns.empty()) {
    Turns<Lane::iterator> turn = turns.top();
    turns.pop();
    Sequence& sequence = *turn.next->second;
    // One that has come since may go on from what ended in that step, and is to find it shared.
    if (!has_removed && sequence.stats.submitted >= last_step_begin) {
      RemoveEnded();
      has_removed = true;
    }
    // The device of a pin or a probe may be full while others are not.
    if (!CountChoices(occupancy, sequence) && !sequence.is_bound()) continue;
    ++turn.next;
    const bool is_last = turn.next == turn.end;
    if (!choices_.empty() && !sequence.paused.has_value() && !WaitsForPrefix(occupancy, sequence)) {
      if (!OpenTable(sequence)) {
        if (!Claim(occupancy, sequence)) return;
        if (!is_last) turns.push(turn);
        continue;
      }
      Occupancy::OfDevice& place = occupancy.devices[sequence.device->index];
      ++place.by_priority[static_cast<size_t>(sequence.request.priority)];
      ++place.rows;
      place.work += CostLeft(sequence);
      place.prefilling.push_back(&sequence);
      ++occupancy.by_tenant[sequence.request.tenant];
      turn.counter += kDecodeCost * shape_.meta_tokens;

      const auto goes_before = [](const Sequence& a, const Sequence& b) {
        return std::make_tuple(b.request.priority, a.request.deadline, a.id) <
               std::make_tuple(a.request.priority, b.request.deadline, b.id);
      };
      // The lane's end stays valid unless this was its last sequence.
      std::unique_ptr<Sequence> admitted = Dequeue(sequence);
      admitted->running = true;
      auto& running = sequence.device->running;
      const auto position =
          std::upper_bound(running.begin(), running.end(), admitted,
                           [&](const auto& a, const auto& b) { return goes_before(*a, *b); });
      running.insert(position, std::move(admitted));
      if (sequence.is_pin()) CommitPin(sequence);
    }
    if (!is_last) turns.push(turn);
  }
}

Scheduler::Occupancy Scheduler::CountOccupancy() const {
  Occupancy occupancy;
  occupancy.devices.resize(devices_.size());
  for (const auto& device : devices_) {
    Occupancy::OfDevice& place = occupancy.devices[device->index];
    for (const auto& sequence : device->running) {
      if (sequence->paused.has_value() || sequence->end.has_value() || sequence->leaving) continue;
      ++place.by_priority[static_cast<size_t>(sequence->request.priority)];
      ++place.rows;
      place.work += CostLeft(*sequence);
      ++occupancy.by_tenant[sequence->request.tenant];
      const int whole = sequence->num_tokens() / shape_.meta_tokens * shape_.meta_tokens;
      if (sequence->table.cached_tokens < whole) place.prefilling.push_back(sequence.get());
    }
  }
  return occupancy;
}

// Rows for everybody while there are; then for those of higher priority than others that run, and
// for tenants with less than their fair share of all rows. Those who lose by it skip steps.
bool Scheduler::HasRoom(const Occupancy& occupancy, const Device& device,
                        const Sequence& sequence) const {
  const Occupancy::OfDevice& place = occupancy.devices[device.index];
  int at_least_as_high = 0;
  for (size_t p = static_cast<size_t>(sequence.request.priority); p < kNumPriorities; ++p) {
    at_least_as_high += place.by_priority[p];
  }
  if (at_least_as_high < shape_.max_rows) return true;
  if (!options_.preempt_for_fairness) return false;
  const auto own = occupancy.by_tenant.find(sequence.request.tenant);
  // Rounded up: PlanStep evens out what rows alone cannot.
  const int rows = shape_.max_rows * static_cast<int>(devices_.size());
  const int share = (rows + shares_.num_active() - 1) / shares_.num_active();
  return own == occupancy.by_tenant.end() || own->second < share;
}

// Fills choices_ with the devices that have room for a sequence, the best first: where nobody has
// to skip steps for it, then where the least work is ahead of it. False: there is none.
bool Scheduler::CountChoices(const Occupancy& occupancy, const Sequence& sequence) {
  choices_.clear();
  for (const auto& device : devices_) {
    const Occupancy::OfDevice& place = occupancy.devices[device->index];
    if (sequence.is_bound() && sequence.device != device.get()) continue;
    if (place.claimed || !HasRoom(occupancy, *device, sequence) ||
        PagesNeeded(shape_, sequence.max_tokens_total()) > device->shape.num_pages) {
      continue;
    }
    choices_.push_back(
        {.device = device.get(), .has_row = place.rows < shape_.max_rows, .work = place.work});
  }
  return !choices_.empty();
}

// Whether the best device for the sequence is one where its beginning is being prefilled: that
// saves it the work. The answer is remembered while it stays true: prompts are long. If not,
// choices_ are in order.
bool Scheduler::WaitsForPrefix(const Occupancy& occupancy, Sequence& sequence) {
  if (sequence.waits_for.has_value()) {
    const auto found = by_id_.find(sequence.waits_for->sequence);
    if (found != by_id_.end() && WillCache(*found->second, sequence.waits_for->tokens)) return true;
    sequence.waits_for.reset();
  }
  for (Choice& choice : choices_) {
    const Device& device = *choice.device;
    // To count takes time, and is worth it where there is a choice or something to wait for.
    const bool is_prefilling = !occupancy.devices[device.index].prefilling.empty();
    if (choices_.size() == 1 && !is_prefilling) break;
    const int cached = device.pool.CountCached(sequence.request.tenant, sequence.tokens);
    if (is_prefilling) choice.coming = FindPrefilling(occupancy, device, sequence, cached);
    const int shared = choice.coming.has_value() ? choice.coming->tokens : cached;
    choice.work += kPrefillCost * (sequence.num_tokens() - shared);
  }
  std::sort(choices_.begin(), choices_.end(), [](const Choice& a, const Choice& b) {
    return std::tie(b.has_row, a.work, a.device->index) <
           std::tie(a.has_row, b.work, b.device->index);
  });
  sequence.waits_for = choices_.front().coming;
  return sequence.waits_for.has_value();
}

bool Scheduler::WillCache(const Sequence& sequence, int tokens) {
  return sequence.running && sequence.table.cached_tokens < tokens && !sequence.end.has_value() &&
         !sequence.leaving && !sequence.paused.has_value();
}

// A sequence that is being prefilled on `device` with more of what this one begins with than the
// `cached` tokens that are there.
std::optional<Scheduler::ComingPrefix> Scheduler::FindPrefilling(const Occupancy& occupancy,
                                                                 const Device& device,
                                                                 const Sequence& sequence,
                                                                 int cached) const {
  const int meta = shape_.meta_tokens;
  // Others help if they share more than that. The last meta-context of a page that is copied is
  // computed again, so it takes one more unless a page ends there.
  int least = cached + meta;
  if (least % shape_.page_tokens != 0) least += meta;
  if (sequence.num_tokens() < least) return std::nullopt;
  const auto first_new = sequence.tokens.begin() + (least - meta);
  for (const Sequence* other : occupancy.devices[device.index].prefilling) {
    if (other->request.tenant != sequence.request.tenant ||
        other->request.priority < sequence.request.priority || other->num_tokens() < least ||
        // Mostly they part where the cached tokens end: no need to look at those.
        !std::equal(first_new, first_new + meta, other->tokens.begin() + (least - meta))) {
      continue;
    }
    const auto parting = std::mismatch(sequence.tokens.begin(), sequence.tokens.end(),
                                       other->tokens.begin(), other->tokens.end());
    const int common = static_cast<int>(parting.first - sequence.tokens.begin()) / meta * meta;
    const int shared = common % shape_.page_tokens == 0 ? common : common - meta;
    if (shared <= cached || !WillCache(*other, shared)) continue;
    return ComingPrefix{.sequence = other->id, .tokens = shared};
  }
  return std::nullopt;
}

// Enough to decode once, at least: what could not would be preempted at once.
int Scheduler::ReservedTokens(const Sequence& sequence) const {
  if (sequence.is_pin()) return sequence.num_tokens();
  const int meta = shape_.meta_tokens;
  const int64_t left = sequence.max_tokens_total() - sequence.num_tokens();
  return std::max(
      sequence.num_tokens() / meta * meta + meta,
      sequence.num_tokens() + static_cast<int>(left * options_.reserved_output_percent / 100));
}

// On the first of choices_ that has the memory, or can have it.
bool Scheduler::OpenTable(Sequence& sequence) {
  const auto open = [&](const Choice& choice) {
    if (!choice.device->pool.Open(sequence.table, sequence.request.tenant, sequence.tokens,
                                  ReservedTokens(sequence))) {
      return false;
    }
    sequence.device = choice.device;
    return true;
  };
  const auto make_room = [&](const Choice& choice) {
    // What a step computes cannot be preempted.
    return !choice.device->computing && MakeRoom(*choice.device, sequence) && open(choice);
  };
  const auto open_any = [&] { return std::any_of(choices_.begin(), choices_.end(), open); };
  if (!open_any() && !(RemoveEnded() && open_any()) &&
      !(options_.preempt_for_fairness &&
        std::any_of(choices_.begin(), choices_.end(), make_room))) {
    return false;
  }
  const bool is_first = sequence.stats.preemptions == 0;
  if (is_first) sequence.stats.cached_tokens = sequence.table.cached_tokens;
  if (is_first && !sequence.is_probe()) {
    counters_.prompt_tokens += sequence.stats.prompt_tokens;
    counters_.prompt_tokens_cached += sequence.stats.cached_tokens;
  }
  // What is computed from tokens from here on is what a prefill gives.
  const bool is_recgen = sequence.request.mode == GenerationMode::kRecGen;
  sequence.shareable_tokens = is_recgen ? sequence.num_tokens() : shape_.max_context;
  if (is_recgen) sequence.stats.reencoded_tokens = sequence.num_generated();
  return true;
}

// Keeps a device for a sequence that none has the memory for: the one that lacks the least, to
// which nothing is admitted until it is enough or another one lacks less. Pins may stay for long:
// what they leave no room for claims nothing. False: every device is claimed.
bool Scheduler::Claim(Occupancy& occupancy, const Sequence& sequence) const {
  const int tokens = ReservedTokens(sequence);
  const Device* nearest = nullptr;
  int least = 0;
  for (const Choice& choice : choices_) {
    const LatentPool& pool = choice.device->pool;
    if (IsBlockedByPins(*choice.device, sequence, tokens)) continue;
    const int lacking = PagesNeeded(shape_, tokens) - pool.num_available();
    if (nearest != nullptr && lacking >= least) continue;
    nearest = choice.device;
    least = lacking;
  }
  if (nearest != nullptr) occupancy.devices[nearest->index].claimed = true;
  return std::any_of(occupancy.devices.begin(), occupancy.devices.end(),
                     [](const Occupancy::OfDevice& place) { return !place.claimed; });
}

// Whether pins leave no room for `tokens` tokens of a sequence, even if nothing else ran.
bool Scheduler::IsBlockedByPins(const Device& device, const Sequence& sequence, int tokens) const {
  if (device.pool.num_kept() == 0) return false;
  const int pinned = device.pool.CountPinned(sequence.request.tenant, sequence.tokens);
  return PagesNeeded(shape_, tokens) - pinned > device.pool.num_pages() - device.pool.num_kept();
}

// Preempts on `device`, the newest first, sequences of lower priority, and of tenants above their
// fair share of all pages if this one's tenant stays within its own.
bool Scheduler::MakeRoom(Device& device, const Sequence& sequence) {
  std::map<TenantId, int> held;
  int num_pages = 0;
  for (const auto& any : devices_) {
    num_pages += any->pool.num_pages();
    for (const auto& other : any->running) {
      held[other->request.tenant] +=
          static_cast<int>(other->table.pages.size()) + other->table.reserved;
    }
  }
  const int needed = PagesNeeded(shape_, ReservedTokens(sequence));
  const int share = num_pages / shares_.num_active();
  const bool is_modest = held[sequence.request.tenant] + needed <= share;

  std::vector<Sequence*> victims;
  int gain = device.pool.num_available();
  for (auto other = device.running.rbegin(); other != device.running.rend() && gain < needed;
       ++other) {
    Sequence& victim = **other;
    const int pages = static_cast<int>(victim.table.pages.size()) + victim.table.reserved;
    const bool is_lower = victim.request.priority < sequence.request.priority;
    const bool is_equal = victim.request.priority == sequence.request.priority;
    const bool has_more =
        victim.request.tenant != sequence.request.tenant && held[victim.request.tenant] > share;
    if (victim.end.has_value() || victim.leaving) continue;
    if (!is_lower && !(is_equal && is_modest && has_more)) continue;
    held[victim.request.tenant] -= pages;
    gain += pages;
    victims.push_back(&victim);
  }
  if (gain < needed) return false;
  for (Sequence* victim : victims) Preempt(*victim);
  return true;
}

// What the pages hold stays cached while their memory is not needed.
void Scheduler::CloseTable(Sequence& sequence) {
  LatentPool& pool = sequence.device->pool;
  // Before its first step a copy may still be due.
  if (!sequence.table.copy.has_value()) {
    pool.Commit(sequence.table, sequence.tokens, sequence.table.cached_tokens,
                sequence.shareable_tokens);
  }
  pool.Close(sequence.table);
}

// Going on may cost little: see CloseTable.
void Scheduler::Preempt(Sequence& sequence) {
  Device& device = *sequence.device;
  CloseTable(sequence);
  sequence.running = false;
  ++sequence.stats.preemptions;
  ++counters_.preemptions;
  const auto place = std::find_if(device.running.begin(), device.running.end(),
                                  [&](const auto& s) { return s.get() == &sequence; });
  std::unique_ptr<Sequence> owned = std::move(*place);
  device.running.erase(place);
  Enqueue(std::move(owned));
}

void Scheduler::StartStep(Device& device, TimePoint now) {
  PlanStep(device, now);
  if (device.step.rows.empty()) {
    device.last_step_end.reset();
    return;
  }
  counters_.page_copies += static_cast<int64_t>(device.step.copies.size());
  device.computing = true;
  device.thread.Start(device.step.copies, device.step.rows, &device.sink);
}

void Scheduler::PlanStep(Device& device, TimePoint now) {
  Step& step = device.step;
  step.copies.clear();
  step.rows.clear();
  step.sequences.clear();
  step.cost = 0;

  // Sequences of one priority and tenant, in turn.
  std::map<LaneKey, std::vector<Sequence*>> lanes;
  for (const auto& sequence : device.running) {
    if (sequence->paused.has_value() || sequence->end.has_value() || sequence->leaving) continue;
    lanes[{sequence->request.priority, sequence->request.tenant}].push_back(sequence.get());
  }
  using Iterator = std::vector<Sequence*>::iterator;
  std::priority_queue<Turns<Iterator>> turns;
  for (auto& [key, lane] : lanes) {
    turns.push({.priority = key.priority,
                .tenant = key.tenant,
                .counter = shares_.counter(key.tenant),
                .next = lane.begin(),
                .end = lane.end()});
  }
  int prefill_budget = shape_.max_prefill_tokens / shape_.meta_tokens * shape_.meta_tokens;
  while (!turns.empty() && static_cast<int>(step.rows.size()) < shape_.max_rows) {
    Turns<Iterator> turn = turns.top();
    turns.pop();
    Sequence& sequence = **turn.next++;
    // One that was preempted in this round is no longer running.
    const int64_t cost_before = step.cost;
    if (sequence.running) PlanRow(sequence, prefill_budget, now);
    const int64_t cost = step.cost - cost_before;
    shares_.Charge(turn.tenant, cost);
    turn.counter += cost;
    if (turn.next != turn.end) turns.push(turn);
  }
}

bool Scheduler::PlanRow(Sequence& sequence, int& prefill_budget, TimePoint now) {
  const int meta = shape_.meta_tokens;
  Step& step = sequence.device->step;
  const int cached = sequence.table.cached_tokens;
  const int uncached = sequence.num_tokens() - cached;
  const int whole = uncached / meta * meta;
  const int prefill = std::min(whole, prefill_budget);
  // Its turn comes when prompts before it are done.
  if (prefill == 0 && whole > 0) return false;

  Row row;
  row.decode = prefill == whole && !sequence.is_pin();
  if (!GrowTable(sequence, cached + prefill + (row.decode ? meta : 0))) return false;
  row.cached_tokens = cached;
  row.input =
      std::span<const TokenId>(sequence.tokens).subspan(cached, row.decode ? uncached : prefill);
  row.pages = sequence.table.pages;
  row.mode = sequence.request.mode;
  row.sampling = sequence.request.sampling;
  step.rows.push_back(row);
  step.sequences.push_back(&sequence);
  if (sequence.table.copy.has_value()) step.copies.push_back(*sequence.table.copy);
  prefill_budget -= prefill;
  step.cost += kPrefillCost * prefill + (row.decode ? kDecodeCost * meta : 0);

  sequence.in_step = true;
  sequence.sampled.clear();
  sequence.exhausted = false;
  ++sequence.stats.steps;
  if (!sequence.stats.first_step.has_value()) sequence.stats.first_step = now;
  return true;
}

// Within its reservation a table always grows. Beyond, the last in turn that has no row yet gives
// way; the first in turn never does, and it fits alone unless pins are in its way.
bool Scheduler::GrowTable(Sequence& sequence, int tokens) {
  Device& device = *sequence.device;
  while (!device.pool.Grow(sequence.table, tokens)) {
    if (RemoveEnded()) continue;
    if (IsBlockedByPins(device, sequence, tokens)) {
      Preempt(sequence);
      return false;
    }
    const auto victim = std::find_if(
        device.running.rbegin(), device.running.rend(),
        [&](const auto& other) { return other.get() != &sequence && !other->in_step; });
    if (victim == device.running.rend()) {
      Preempt(sequence);
      return false;
    }
    Preempt(**victim);
  }
  return true;
}

int64_t Scheduler::CostLeft(const Sequence& sequence) const {
  return kPrefillCost * (sequence.num_tokens() - sequence.table.cached_tokens) +
         kDecodeCost * (sequence.max_tokens_total() - sequence.num_tokens());
}

int Scheduler::StepsToFirstToken(int uncached) const {
  const int meta = shape_.meta_tokens;
  const int budget = shape_.max_prefill_tokens / meta * meta;
  // The step that prefills the last piece decodes, too.
  return std::max(1, (uncached / meta * meta + budget - 1) / budget);
}

}  // namespace photon
