// What the server knows of the model that it serves.
#pragma once

#include <memory>
#include <string>

#include "engine/engine.h"
#include "engine/model/config.h"
#include "engine/model/tokenizer.h"

namespace photon {

// Constant while the model is served.
struct ModelFacts {
  std::string name;
  ModelConfig config;
  EngineShape shape;
  std::shared_ptr<const Tokenizer> tokenizer;
  // For requests that do not say.
  GenerationMode default_mode = GenerationMode::kExact;
  int default_max_tokens = 256;
};

}  // namespace photon
