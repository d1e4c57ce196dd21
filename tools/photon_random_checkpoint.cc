// photon-random-checkpoint: writes a checkpoint of any config with random weights.
//
//   photon-random-checkpoint --config models/photon-600m/config.json --out /tmp/photon-600m
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "engine/model/config.h"
#include "engine/model/random_checkpoint.h"

ABSL_FLAG(std::string, config, "",
          "the model's shape: a config.json, or a directory that holds one");
ABSL_FLAG(std::string, out, "", "directory to write; must not hold a checkpoint yet");
ABSL_FLAG(std::string, dtype, "bf16", "element type: bf16, f32 or f16");
ABSL_FLAG(uint64_t, seed, 0, "the same seed gives the same weights");
ABSL_FLAG(int64_t, shard_bytes, 0, "largest data of one shard; 0 writes a single file");
ABSL_FLAG(std::string, tokenizer, "", "SentencePiece model to copy into the checkpoint");

namespace photon {
namespace {

absl::StatusOr<DType> ParseDType(const std::string& name) {
  if (name == "bf16") return DType::kBF16;
  if (name == "f32") return DType::kF32;
  if (name == "f16") return DType::kF16;
  return absl::InvalidArgumentError("--dtype: must be bf16, f32 or f16, got " + name);
}

// Rewrites one line on stderr, once per per cent.
class ProgressLine {
 public:
  void Show(int64_t written, int64_t total) {
    const int percent =
        static_cast<int>(100.0 * static_cast<double>(written) / static_cast<double>(total));
    if (percent == shown_percent_) return;
    shown_percent_ = percent;
    std::fprintf(stderr, "\r%3d %% of %.1f MB%s", percent, static_cast<double>(total) / 1e6,
                 written == total ? "\n" : "");
  }

 private:
  int shown_percent_ = -1;
};

absl::Status Run() {
  const std::string out = absl::GetFlag(FLAGS_out);
  if (absl::GetFlag(FLAGS_config).empty() || out.empty()) {
    return absl::InvalidArgumentError("--config and --out are required; --help explains");
  }
  absl::StatusOr<DType> dtype = ParseDType(absl::GetFlag(FLAGS_dtype));
  if (!dtype.ok()) return dtype.status();
  absl::StatusOr<ModelConfig> config = LoadModelConfig(absl::GetFlag(FLAGS_config));
  if (!config.ok()) return config.status();
  ProgressLine line;
  const RandomCheckpointOptions options = {
      .dtype = *dtype,
      .seed = absl::GetFlag(FLAGS_seed),
      .shard_bytes = absl::GetFlag(FLAGS_shard_bytes),
      .tokenizer = absl::GetFlag(FLAGS_tokenizer),
      .progress = [&line](int64_t written, int64_t total) { line.Show(written, total); }};
  absl::Status status = WriteRandomCheckpoint(*config, options, out);
  if (!status.ok()) return status;
  std::printf("%s: %lld parameters\n", out.c_str(), static_cast<long long>(NumParameters(*config)));
  return absl::OkStatus();
}

}  // namespace
}  // namespace photon

// Exit codes: 0 written, 1 failed, 2 wrong usage or an invalid config.
int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("writes a PHOTON checkpoint with random weights");
  const std::vector<char*> arguments = absl::ParseCommandLine(argc, argv);
  const absl::Status status =
      arguments.size() > 1
          ? absl::InvalidArgumentError(std::string("unexpected argument ") + arguments[1])
          : photon::Run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "photon-random-checkpoint: %s\n", status.ToString().c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}
