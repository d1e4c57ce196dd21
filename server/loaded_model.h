// A model in memory, ready to be served, and who brings one there.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/model_facts.h"

namespace photon {

struct LoadedModel {
  ModelFacts facts;  // the shape aside, which is the engines'
  // One for each device, at least one; they own all that they compute with.
  std::vector<std::shared_ptr<Engine>> engines;
  std::string directory;  // where it comes from; empty: from none
  std::string version;    // DirectoryVersion of that, before anything of it was read
};

// Of one of the engines, with the pages and rows of all.
EngineShape ShapeOfAll(const std::vector<std::shared_ptr<Engine>>& engines);

// What the files in a directory cannot change without: their names, sizes, times and inodes.
std::string DirectoryVersion(const std::string& directory);

// Loads the checkpoint in a directory. An error says what does not load or does not fit in memory,
// and leaves nothing behind. Takes as long as it takes; called by one thread at a time.
using ModelLoader = std::function<absl::StatusOr<LoadedModel>(const std::string& directory)>;

}  // namespace photon
