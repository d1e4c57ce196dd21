// CUDA's handles as owners, and the stream that work is put on.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string_view>
#include <type_traits>

#include "absl/status/status.h"
#include "engine/cuda/device_memory.h"

namespace photon::cuda {

template <typename Handle, auto kDestroy>
struct DestroyHandle {
  void operator()(Handle handle) const { kDestroy(handle); }
};
template <typename Handle, auto kDestroy>
using UniqueHandle =
    std::unique_ptr<std::remove_pointer_t<Handle>, DestroyHandle<Handle, kDestroy>>;

using UniqueStream = UniqueHandle<cudaStream_t, cudaStreamDestroy>;
using UniqueEvent = UniqueHandle<cudaEvent_t, cudaEventDestroy>;
using UniqueGraph = UniqueHandle<cudaGraph_t, cudaGraphDestroy>;
using UniqueGraphExec = UniqueHandle<cudaGraphExec_t, cudaGraphExecDestroy>;

// A stream and the first error of what was put on it. Everything after an error is left out, so
// that the forward pass reads as a list of operations and is checked once.
class Work {
 public:
  explicit Work(cudaStream_t stream) : stream_(stream) {}

  cudaStream_t stream() const { return stream_; }
  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }

  // Puts an operation on the stream: `launch` takes the stream and returns cudaError_t.
  template <typename Launch>
  void Run(std::string_view what, Launch launch) {
    if (status_.ok()) Update(ToStatus(launch(stream_), what));
  }
  void Update(const absl::Status& status) { status_.Update(status); }

 private:
  cudaStream_t stream_;
  absl::Status status_;
};

}  // namespace photon::cuda
