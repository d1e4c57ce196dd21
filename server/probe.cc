#include "server/probe.h"

#include <limits>
#include <span>
#include <string>
#include <utility>

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
  void OnFinish(SequenceEnd end, const SequenceStats&) override {
    {
      std::lock_guard lock(probe_->mutex_);
      probe_->result_ = ResultOf(end);
    }
    probe_->ended_.notify_all();
    probe_->on_end_();
  }

 private:
  const std::shared_ptr<Probe> probe_;
};

absl::StatusOr<std::shared_ptr<Probe>> Probe::Submit(Scheduler& scheduler, const Clock& clock,
                                                     std::function<void()> on_end) {
  std::shared_ptr<Probe> probe(new Probe(clock.Now(), std::move(on_end)));
  SequenceRequest request;
  request.prompt = {TokenId{0}};
  request.max_tokens = 1;
  request.sampling.temperature = 0;
  request.sampling.seed = kProbeSeed;
  request.tenant = kProbeTenant;
  request.priority = Priority::kHigh;
  request.is_probe = true;
  const auto id = scheduler.Submit(std::move(request), std::make_unique<Listener>(probe));
  if (!id.ok()) return id.status();
  return probe;
}

std::optional<absl::Status> Probe::result() const {
  std::lock_guard lock(mutex_);
  return result_;
}

absl::Status Probe::Wait(Duration patience) {
  std::unique_lock lock(mutex_);
  const bool has_ended = ended_.wait_for(
      lock, patience,
      [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return result_.has_value(); });
  return has_ended ? *result_ : absl::DeadlineExceededError("the engine did not answer in time");
}

}  // namespace photon
