// Replaces the model that is served by one from disk, while requests go on.
//
//   load ──▶ probe ──▶ new requests go to the new model ──▶ the old one's requests end ──▶ it is
//   freed
//
// Both are in memory meanwhile. Until the new one has answered a probe nothing has changed: what
// goes wrong before leaves the old one as it is.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "server/loaded_model.h"
#include "server/served_model.h"

namespace photon {

class ModelReloader {
 public:
  enum class Stage { kLoading, kProbing, kDraining, kDone };

  struct Progress {
    Stage stage = Stage::kLoading;
    int num_running = 0;          // sequences left on the old model
    int num_documents_ended = 0;  // with the old model
    int generation = 0;           // of the model that new requests go to
  };

  // What a reload says on its way, on a thread of the reloader. `on_end` comes once, and last.
  struct Listener {
    std::function<void(const Progress&)> on_progress;
    std::function<void(const absl::Status&)> on_end;
  };

  struct Options {
    std::chrono::milliseconds drain_timeout{};  // for the requests of the old model
    std::chrono::milliseconds probe_timeout{};  // for the new one's first answer
  };

  struct Counts {
    int64_t done = 0;
    int64_t failed = 0;
  };

  // `host` outlives it, and so does what `environment` borrows. `loader` may be null: then no model
  // is ever replaced. `on_model_end` hears how the loop of a model ended, see ServedModel::Start.
  ModelReloader(const Options& options, ModelHost* host, ModelLoader loader,
                ServedModel::Environment environment,
                std::function<void(const ServedModel*, const absl::Status&)> on_model_end);
  // See Stop; waits for as long as a load takes.
  ~ModelReloader();
  ModelReloader(const ModelReloader&) = delete;
  ModelReloader& operator=(const ModelReloader&) = delete;

  // Begins to replace the model by that in `directory`; empty: that from which the one comes that
  // is served. kUnimplemented: there is no loader. kAborted: another reload is under way.
  // kUnavailable: Stop was called. Otherwise the listener hears the rest: kFailedPrecondition,
  // kResourceExhausted and other codes of the loader: nothing has changed.
  absl::Status Reload(const std::string& directory, Listener listener);

  // The same for the directory of the model that is served, if its files have changed since.
  void ReloadIfChanged();

  // Takes no more reloads, and gives up the one under way as soon as it can.
  void Stop();

  // The models in memory, the one that new requests go to first.
  std::vector<std::shared_ptr<ServedModel>> models() const;

  // Of all models that there were, together.
  SchedulerStats stats() const;
  Counts counts() const;

  // Blocks until the old model of a reload, if there is one, has ended.
  void AwaitRetirement();

  // Something that cannot be waited for is under way: a load, or a step that does not end.
  bool is_busy() const;

 private:
  void Run(const std::string& directory, const Listener& listener);
  absl::Status Replace(const std::string& directory, const Listener& listener);

  const Options options_;
  ModelHost* const host_;
  const ModelLoader loader_;
  const ServedModel::Environment environment_;
  const std::function<void(const ServedModel*, const absl::Status&)> on_model_end_;

  mutable std::mutex mutex_;
  std::condition_variable retired_model_;
  bool running_ ABSL_GUARDED_BY(mutex_) = false;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<ServedModel> retiring_ ABSL_GUARDED_BY(mutex_);
  SchedulerStats retired_ ABSL_GUARDED_BY(mutex_);  // counters of models that are gone
  Counts counts_ ABSL_GUARDED_BY(mutex_);
  // Candidates whose probe never ended: their destructors would not either.
  std::vector<std::shared_ptr<ServedModel>> abandoned_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace photon
