// Cache-line aligned memory of a fixed size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace photon {

// Zero-filled. Large buffers come as untouched pages from the system: memory is used when written.
template <typename T>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  static constexpr size_t kAlignment = 64;

  AlignedBuffer() = default;
  explicit AlignedBuffer(int64_t size) : size_(size) {
    if (size == 0) return;
    // calloc leaves fresh pages alone, which aligned_alloc and memset would not.
    allocation_.reset(std::calloc(1, static_cast<size_t>(size) * sizeof(T) + kAlignment));
    if (allocation_ == nullptr) throw std::bad_alloc();
    void* start = allocation_.get();
    size_t space = static_cast<size_t>(size) * sizeof(T) + kAlignment;
    data_ = static_cast<T*>(std::align(kAlignment, 1, start, space));
  }
  AlignedBuffer(AlignedBuffer&& other) noexcept { *this = std::move(other); }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    allocation_ = std::move(other.allocation_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> allocation_;
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace photon
