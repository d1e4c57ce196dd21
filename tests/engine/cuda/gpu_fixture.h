// What tests on a GPU share: a visible skip where there is none, and arrays on the device.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "engine/cuda/kernels/layout.h"
#include "engine/model/float_bits.h"
#include "gtest/gtest.h"

namespace photon::cuda {

// Where kernels run on the CPU, cases take long, and a part of them has to do.
#ifdef PHOTON_CUDA_ON_CPU
inline constexpr int kEveryNth = 5;
#else
inline constexpr int kEveryNth = 1;
#endif

class OnGpu : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
      GTEST_SKIP() << "no GPU: " << cudaGetErrorString(error);
    }
  }
  void TearDown() override {
    if (IsSkipped()) return;
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << cudaGetErrorString(cudaGetLastError());
  }

  std::vector<float> Random(int64_t count, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }
  int RandomBelow(int bound) { return static_cast<int>(random_() % bound); }
  // Whether the next one of many cases is to be tested.
  bool Takes() { return num_cases_++ % kEveryNth == 0; }

  std::mt19937_64 random_{20240607};
  int num_cases_ = 0;
};

inline double ToDouble(float value) {
  return value;
}
inline double ToDouble(__nv_bfloat16 value) {
  return BF16ToFloat(__nv_bfloat16_raw(value).x);
}

template <typename T>
T Rounded(float value);
template <>
inline float Rounded(float value) {
  return value;
}
template <>
inline __nv_bfloat16 Rounded(float value) {
  __nv_bfloat16_raw raw;
  raw.x = FloatToBF16(value);
  return raw;
}

template <typename T>
std::vector<T> RoundedTo(const std::vector<float>& values) {
  std::vector<T> rounded;
  for (float value : values) rounded.push_back(Rounded<T>(value));
  return rounded;
}

// Elements on the device, with a guard behind them that writes beyond the end would change.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : size_(values.size()) {
    std::vector<unsigned char> bytes(size_ * sizeof(T) + kGuardBytes, kGuard);
    if (size_ > 0) memcpy(bytes.data(), values.data(), size_ * sizeof(T));
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), bytes.size()), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), cudaSuccess);
  }
  // Every element unwritten: a NaN for floating types.
  static DeviceArray Unwritten(int64_t size) {
    std::vector<T> values(size);
    if (size > 0) memset(static_cast<void*>(values.data()), 0xff, size * sizeof(T));
    return DeviceArray(values);
  }
  ~DeviceArray() {
    std::vector<unsigned char> guard(kGuardBytes);
    EXPECT_EQ(cudaMemcpy(guard.data(), data_ + size_, kGuardBytes, cudaMemcpyDeviceToHost),
              cudaSuccess);
    EXPECT_EQ(guard, std::vector<unsigned char>(kGuardBytes, kGuard)) << "write beyond the end";
    cudaFree(data_);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> Values() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaMemcpy(static_cast<void*>(values.data()), data_, size_ * sizeof(T),
                         cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }

 private:
  static constexpr size_t kGuardBytes = 256;
  static constexpr unsigned char kGuard = 0xa5;
  size_t size_;
  T* data_ = nullptr;
};

// Rows of `width`, padded as the kernels want them.
template <typename T>
std::vector<T> PaddedRows(const std::vector<T>& values, int width) {
  const int64_t rows = static_cast<int64_t>(values.size()) / width, stride = Padded(width);
  std::vector<T> padded(rows * stride, Rounded<T>(0));
  for (int64_t r = 0; r < rows; ++r) {
    for (int i = 0; i < width; ++i) padded[r * stride + i] = values[r * width + i];
  }
  return padded;
}

// Rounding of the result, relative to it; the sums before it are fp32.
template <typename T>
inline constexpr double kTolerance = 2e-6;
template <>
inline constexpr double kTolerance<__nv_bfloat16> = 0x1p-8;

// Expects `actual` [rows, Padded(width)] to be `expected` [rows, width] up to `tolerance` of the
// norm of each row, and the padding to be zero.
template <typename T>
void ExpectRows(const std::vector<T>& actual, const std::vector<double>& expected, int width,
                double tolerance, const std::string& what) {
  const int64_t rows = static_cast<int64_t>(expected.size()) / width, stride = Padded(width);
  ASSERT_EQ(static_cast<int64_t>(actual.size()), rows * stride) << what;
  for (int64_t r = 0; r < rows; ++r) {
    double difference = 0, norm = 0;
    for (int i = 0; i < width; ++i) {
      const double value = ToDouble(actual[r * stride + i]), wanted = expected[r * width + i];
      difference += (value - wanted) * (value - wanted);
      norm += wanted * wanted;
    }
    // Written so that NaN fails.
    ASSERT_TRUE(std::sqrt(difference) <= tolerance * std::sqrt(norm))
        << what << ", row " << r << " of " << rows << ": off by " << std::sqrt(difference / norm);
    for (int64_t i = width; i < stride; ++i) {
      ASSERT_EQ(ToDouble(actual[r * stride + i]), 0) << what << ", padding of row " << r;
    }
  }
}

}  // namespace photon::cuda
