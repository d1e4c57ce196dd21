// Memory of one GPU, and page-locked memory of the host, taken at start.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"

namespace photon::cuda {

// OK, or kInternal: "local_attention: an illegal memory access was encountered (700)".
absl::Status ToStatus(cudaError_t error, std::string_view what);

// Owns `size()` elements on the device. Empty by default.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;

  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  friend class DeviceAllocator;
  struct Free {
    void operator()(T* data) const { cudaFree(data); }
  };
  DeviceBuffer(T* data, int64_t size) : data_(data), size_(size) {}

  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

// Owns page-locked host memory that the device reads and writes at the same address.
template <typename T>
class HostBuffer {
 public:
  HostBuffer() = default;

  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  friend class DeviceAllocator;
  struct Free {
    void operator()(T* data) const { cudaFreeHost(data); }
  };
  HostBuffer(T* data, int64_t size) : data_(data), size_(size) {}

  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

// Takes zeroed memory. The first failure stays in status(), and everything after it yields empty
// buffers: a constructor may allocate freely, and who called it checks once.
class DeviceAllocator {
 public:
  template <typename T>
  DeviceBuffer<T> Allocate(int64_t count, std::string_view what) {
    return {static_cast<T*>(AllocateBytes(count * static_cast<int64_t>(sizeof(T)), what)), count};
  }
  template <typename T>
  HostBuffer<T> AllocateHost(int64_t count, std::string_view what) {
    return {static_cast<T*>(AllocateHostBytes(count * static_cast<int64_t>(sizeof(T)), what)),
            count};
  }

  // kResourceExhausted: "page pool: 96.0 GiB needed, 71.2 GiB free of 79.1 GiB, 1.3 GiB taken
  // before".
  const absl::Status& status() const { return status_; }
  // Records a failure of something between two allocations.
  void Update(const absl::Status& status) { status_.Update(status); }
  int64_t bytes_taken() const { return bytes_taken_; }

 private:
  void* AllocateBytes(int64_t bytes, std::string_view what);
  void* AllocateHostBytes(int64_t bytes, std::string_view what);

  absl::Status status_;
  int64_t bytes_taken_ = 0;
};

// "1.3 GiB".
std::string GibText(int64_t bytes);

}  // namespace photon::cuda
