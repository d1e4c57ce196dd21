#include "engine/model/tensor.h"

#include <cstring>

#include "engine/model/float_bits.h"

namespace photon {
namespace {

template <typename Stored, typename Convert>
void ConvertAll(const std::byte* from, Convert convert, std::vector<float>& to) {
  for (size_t i = 0; i < to.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, from + i * sizeof(Stored), sizeof(Stored));
    to[i] = convert(stored);
  }
}

}  // namespace

size_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
  }
  return 0;
}

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kI32:
      return "I32";
  }
  return "";
}

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  return count;
}

std::vector<float> ToFloat(const TensorView& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  switch (tensor.dtype) {
    case DType::kF32:
      if (!values.empty()) std::memcpy(values.data(), tensor.data, values.size() * sizeof(float));
      break;
    case DType::kBF16:
      ConvertAll<uint16_t>(tensor.data, BF16ToFloat, values);
      break;
    case DType::kF16:
      ConvertAll<uint16_t>(tensor.data, F16ToFloat, values);
      break;
    case DType::kI32:
      ConvertAll<int32_t>(
          tensor.data, [](int32_t value) { return static_cast<float>(value); }, values);
      break;
  }
  return values;
}

}  // namespace photon
