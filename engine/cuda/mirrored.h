// Arrays that the host writes and the device reads.
#pragma once

#include "engine/cuda/cuda_handles.h"
#include "engine/cuda/device_memory.h"

namespace photon::cuda {

// Written on the host and sent to the device.
template <typename Value>
struct Mirrored {
  HostBuffer<Value> host;
  DeviceBuffer<Value> device;

  Mirrored(int64_t count, std::string_view what, DeviceAllocator& allocator)
      : host(allocator.AllocateHost<Value>(count, what)),
        device(allocator.Allocate<Value>(count, what)) {}

  void Upload(Work& work, int64_t count) const {
    if (count == 0) return;
    work.Run("upload", [&](cudaStream_t stream) {
      return cudaMemcpyAsync(device.data(), host.data(), count * sizeof(Value),
                             cudaMemcpyHostToDevice, stream);
    });
  }
};

}  // namespace photon::cuda
