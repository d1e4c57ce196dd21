// An engine that does nothing: what is left of a step's time is everything around it.
//
// It reports tokens as an engine in kExact does, slot by slot, one of each row at a time, and
// neither reads nor writes pages.
#pragma once

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine.h"

namespace photon {

class IdleEngine final : public Engine {
 public:
  // Meta-contexts of 16 tokens, as the paper's; pages of 256. `vocab_size` > 0.
  static EngineShape Shape(int vocab_size, int max_context, int max_rows, int num_pages);

  explicit IdleEngine(EngineShape shape) : shape_(std::move(shape)) {}

  const EngineShape& shape() const override { return shape_; }

  // Every token is a function of its row's position in the step and of its slot.
  absl::Status Step(std::span<const PageCopy> copies, std::span<const Row> rows,
                    TokenSink& sink) override;

 private:
  const EngineShape shape_;
  std::vector<bool> is_done_;  // by row
};

}  // namespace photon
