#include "engine/model/checkpoint.h"

#include <algorithm>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/problems.h"

namespace photon {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

std::string ShapeName(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// An element is infinite or NaN where all bits of its exponent are set. Adding one to the exponent
// field then, and only then, carries into the sign bit, which has been masked off. The loop has no
// branch within a block, so compilers turn it into vector code that keeps up with memory.
template <typename Bits, Bits kExponentMask, Bits kExponentOne>
int64_t FindFullExponent(const std::byte* data, int64_t count) {
  constexpr int64_t kBlock = 16384;
  constexpr Bits kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  const Bits* values = reinterpret_cast<const Bits*>(data);
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t end = std::min(count, start + kBlock);
    Bits carried = 0;
    for (int64_t i = start; i < end; ++i) {
      carried |= static_cast<Bits>((values[i] & kExponentMask) + kExponentOne);
    }
    if ((carried & kSign) == 0) continue;
    for (int64_t i = start; i < end; ++i) {
      if ((values[i] & kExponentMask) == kExponentMask) return i;
    }
  }
  return -1;
}

// Fills `weights` with the views of `tensors`. Reports every tensor that does not fit.
absl::Status Bind(const ModelConfig& config, const TensorMap& tensors, ModelWeights& weights) {
  ProblemList problems;
  std::set<std::string> expected;
  ForEachTensor(config, weights, [&](TensorSpec spec, TensorView& view) {
    const auto found = tensors.find(spec.name);
    if (found == tensors.end()) {
      problems.Add(absl::StrCat(spec.name, ": missing, expected ", ShapeName(spec.shape)));
    } else if (found->second.shape != spec.shape) {
      problems.Add(absl::StrCat(spec.name, ": expected ", ShapeName(spec.shape), ", file has ",
                                ShapeName(found->second.shape)));
    } else if (found->second.dtype == DType::kI32) {
      problems.Add(absl::StrCat(spec.name, ": expected F32, BF16 or F16, file has I32"));
    } else {
      view = found->second;
    }
    expected.insert(std::move(spec.name));
  });
  for (const auto& [name, view] : tensors) {
    if (expected.contains(name)) continue;
    problems.Add(absl::StrCat(Quoted(name), ": the config has no such tensor; file has ",
                              ShapeName(view.shape)));
  }
  return problems.ToStatus();
}

absl::Status CheckFinite(const TensorMap& tensors) {
  for (const auto& [name, view] : tensors) {
    const int64_t index = FindNonFinite(view);
    if (index < 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": element ", index, " of ", ShapeName(view.shape), " is infinite or not a number"));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t FindNonFinite(const TensorView& tensor) {
  const int64_t count = tensor.num_elements();
  switch (tensor.dtype) {
    case DType::kF32:
      return FindFullExponent<uint32_t, 0x7f800000, 0x00800000>(tensor.data, count);
    case DType::kBF16:
      return FindFullExponent<uint16_t, 0x7f80, 0x0080>(tensor.data, count);
    case DType::kF16:
      return FindFullExponent<uint16_t, 0x7c00, 0x0400>(tensor.data, count);
    case DType::kI32:
      return -1;
  }
  return -1;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& path) {
  const std::string file = absl::EndsWith(path, ".json") ? path : path + "/config.json";
  absl::StatusOr<std::string> text = ReadSmallFile(file, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  absl::StatusOr<ModelConfig> config = ParseModelConfig(*text);
  if (config.ok()) return config;
  return absl::Status(config.status().code(), absl::StrCat(file, ": ", config.status().message()));
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Load(const std::string& directory) {
  absl::StatusOr<ModelConfig> config = LoadModelConfig(directory);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::unique_ptr<SafetensorsDirectory>> files =
      SafetensorsDirectory::Open(directory);
  if (!files.ok()) return files.status();
  ModelWeights weights;
  absl::Status status = Bind(*config, (*files)->tensors(), weights);
  if (status.ok()) status = CheckFinite((*files)->tensors());
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(directory, ": ", status.message()));
  }
  return std::unique_ptr<Checkpoint>(
      new Checkpoint(directory, *std::move(config), std::move(weights), *std::move(files)));
}

}  // namespace photon
