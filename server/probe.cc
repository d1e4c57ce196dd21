#include "server/probe.h"

#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace photon {
namespace {

// Nobody's.
constexpr TenantId kProbeTenant{std::numeric_limits<uint64_t>::max()};

absl::Status ResultOf(SequenceEnd end) {
  switch (end) {
    case SequenceEnd::kLength:
      return absl::OkStatus();
    case SequenceEnd::kEngineFailed:
      return absl::InternalError("the engine failed");
    case SequenceEnd::kDrained:
    case SequenceEnd::kCancelled:
      return absl::UnavailableError("the scheduler drained");
    default:
      return absl::InternalError(
          absl::StrCat("a probe ended with ", std::string(SequenceEndName(end))));
  }
}

}  // namespace

class Probe::Listener : public SequenceListener {
 public:
  explicit Listener(std::shared_ptr<Probe> probe) : probe_(std::move(probe)) {}

  std::optional<size_t> OnTokens(std::span<const SampledToken>) override { return std::nullopt; }
  void OnFinish(SequenceEnd end, const SequenceStats&) override { probe_->OnAnswer(ResultOf(end)); }

 private:
  const std::shared_ptr<Probe> probe_;
};

absl::StatusOr<std::shared_ptr<Probe>> Probe::Submit(Scheduler& scheduler, const Clock& clock,
                                                     std::function<void()> on_end) {
  const int num_devices = scheduler.num_devices();
  std::shared_ptr<Probe> probe(new Probe(clock.Now(), num_devices, std::move(on_end)));
  std::vector<Scheduler::Submission> submissions;
  for (int device = 0; device < num_devices; ++device) {
    SequenceRequest request;
    request.prompt = {TokenId{0}};
    request.max_tokens = 1;
    request.sampling.temperature = 0;
    request.sampling.seed = kProbeSeed;
    request.tenant = kProbeTenant;
    request.priority = Priority::kHigh;
    request.probed_device = device;
    submissions.push_back({std::move(request), std::make_unique<Listener>(probe)});
  }
  const auto ids = scheduler.SubmitAll(std::move(submissions));
  if (!ids.ok()) return ids.status();
  return probe;
}

void Probe::OnAnswer(const absl::Status& status) {
  {
    std::lock_guard lock(mutex_);
    status_.Update(status);
    if (--num_running_ > 0) return;
  }
  ended_.notify_all();
  on_end_();
}

std::optional<absl::Status> Probe::result() const {
  std::lock_guard lock(mutex_);
  if (num_running_ > 0) return std::nullopt;
  return status_;
}

absl::Status Probe::Wait(Duration patience) {
  std::unique_lock lock(mutex_);
  const bool has_ended = ended_.wait_for(
      lock, patience, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return num_running_ == 0; });
  return has_ended ? status_ : absl::DeadlineExceededError("the engine did not answer in time");
}

}  // namespace photon
