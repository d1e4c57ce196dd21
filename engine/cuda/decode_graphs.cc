#include "engine/cuda/decode_graphs.h"

#include <utility>

namespace photon::cuda {
namespace {

// Ends the recording and makes it executable.
absl::StatusOr<UniqueGraphExec> Finish(cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  absl::Status status = ToStatus(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  const UniqueGraph owner(graph);
  if (!status.ok()) return status;
  cudaGraphExec_t exec = nullptr;
  status = ToStatus(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  UniqueGraphExec piece(exec);
  if (!status.ok()) return status;
  return piece;
}

}  // namespace

absl::StatusOr<DecodeGraphs> DecodeGraphs::Record(cudaStream_t stream,
                                                  absl::FunctionRef<void(Work&, OnPoint)> enqueue) {
  DecodeGraphs graphs;
  Work work(stream);
  const auto begin = [&] {
    work.Run("cudaStreamBeginCapture", [](cudaStream_t stream) {
      return cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    });
  };
  const auto finish = [&] {
    absl::StatusOr<UniqueGraphExec> piece = Finish(stream);
    work.Update(piece.status());
    if (piece.ok()) graphs.pieces_.push_back(*std::move(piece));
  };
  begin();
  if (!work.ok()) return work.status();
  enqueue(work, [&] {
    if (!work.ok()) return;
    finish();
    begin();
  });
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  work.Update(ToStatus(cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing"));
  // Also after an error, since the stream is of no use until the recording ends.
  if (capture != cudaStreamCaptureStatusNone) finish();
  if (!work.ok()) return work.status();
  return graphs;
}

void DecodeGraphs::Replay(Work& work, OnPoint on_point) const {
  for (size_t i = 0; i < pieces_.size(); ++i) {
    work.Run("cudaGraphLaunch",
             [&](cudaStream_t stream) { return cudaGraphLaunch(pieces_[i].get(), stream); });
    if (i + 1 < pieces_.size()) on_point();
  }
}

}  // namespace photon::cuda
