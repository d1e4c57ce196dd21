// Reading and writing safetensors, the format that checkpoints keep their tensors in.
//
// A file is a little-endian uint64 N, N bytes of JSON, and the data:
//   {"name": {"dtype": "BF16", "shape": [512, 128], "data_offsets": [begin, end]}, ...}
// with offsets counted from the start of the data. An optional "__metadata__" maps strings to
// strings. https://github.com/huggingface/safetensors describes it; that implementation's rules are
// applied, and these: names are unique, every element is aligned in the file, and dtypes are those
// of DType. Nothing is believed before it is checked: any bytes at all yield either tensors inside
// the file or an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/mapped_file.h"
#include "engine/model/tensor.h"

namespace photon {

using TensorMap = std::map<std::string, TensorView, std::less<>>;

// Most bytes of JSON that a file may put before its data.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// The tensors of a file that is in memory, as views into it. `file` starts on an 8-byte boundary.
// kInvalidArgument names the tensor and the rule:
//   tensor "levels.0.encoder.norm": bytes [0, 64) overlap tensor "embedding", which ends at 128
absl::StatusOr<TensorMap> ParseSafetensors(std::span<const std::byte> file);

// Tensor name -> shard file name, from the text of a model.safetensors.index.json. Shard names are
// plain names of files beside the index. kInvalidArgument otherwise.
absl::StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(std::string_view json);

// One mapped file.
class SafetensorsFile {
 public:
  // Errors of MappedFile::Open and of ParseSafetensors, with the path in front.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  // Views are valid for the life of this object.
  const TensorMap& tensors() const { return tensors_; }
  int64_t file_bytes() const { return static_cast<int64_t>(file_->bytes().size()); }

 private:
  SafetensorsFile(std::unique_ptr<MappedFile> file, TensorMap tensors)
      : file_(std::move(file)), tensors_(std::move(tensors)) {}

  std::unique_ptr<MappedFile> file_;
  TensorMap tensors_;
};

// All tensors of a checkpoint directory: model.safetensors, or the shards that
// model.safetensors.index.json names. Having both is an error, because one of them is stale.
class SafetensorsDirectory {
 public:
  // kNotFound: neither is there. kInvalidArgument also where index and shards disagree: a tensor
  // that is not in its shard, or that a shard holds and the index does not list there.
  static absl::StatusOr<std::unique_ptr<SafetensorsDirectory>> Open(const std::string& directory);

  // Views are valid for the life of this object.
  const TensorMap& tensors() const { return tensors_; }
  // Sum over the files.
  int64_t file_bytes() const;

 private:
  SafetensorsDirectory() = default;

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  TensorMap tensors_;
};

// What a file's header says of one tensor.
struct TensorHeader {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;

  int64_t num_bytes() const;
};

// Writes a file from front to back, so that it need never fit in memory.
class SafetensorsWriter {
 public:
  // Creates or replaces `path` and writes the header. Data lies in the order of `tensors`, without
  // gaps. kInvalidArgument: a duplicate name, or a tensor that this order leaves unaligned (put
  // 4-byte dtypes first). Otherwise as the system says.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::string& path, const std::vector<TensorHeader>& tensors);

  // The next bytes of data; pieces need not end where tensors do. kOutOfRange: more than declared.
  absl::Status Append(std::span<const std::byte> bytes);

  // Ends the file. kFailedPrecondition: fewer bytes than declared. No call may follow.
  absl::Status Finish();

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  using FilePtr = std::unique_ptr<std::FILE, CloseFile>;

  SafetensorsWriter(std::string path, FilePtr file, int64_t bytes_left)
      : path_(std::move(path)), file_(std::move(file)), bytes_left_(bytes_left) {}

  const std::string path_;
  FilePtr file_;
  int64_t bytes_left_;
};

}  // namespace photon
