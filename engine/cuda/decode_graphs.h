// Work that is recorded once and replayed: a sequence of CUDA graphs with an event after each, so
// that the host follows along.
#pragma once

#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/cuda/cuda_handles.h"

namespace photon::cuda {

// Calls back at each point where the host wants to know that the work got there.
using OnPoint = absl::FunctionRef<void()>;

class DecodeGraphs {
 public:
  // Records what `enqueue` puts on the stream, cut where it calls its argument.
  static absl::StatusOr<DecodeGraphs> Record(cudaStream_t stream,
                                             absl::FunctionRef<void(Work&, OnPoint)> enqueue);

  // Puts the recorded work on the stream, and calls `on_point` where it was cut.
  void Replay(Work& work, OnPoint on_point) const;

 private:
  std::vector<UniqueGraphExec> pieces_;
};

}  // namespace photon::cuda
