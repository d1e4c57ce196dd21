// What the server knows of the model that it serves.
#pragma once

#include <cstdint>
#include <string>

#include "engine/engine.h"
#include "engine/model/config.h"
#include "engine/model/tokenizer.h"

namespace photon {

// Constant while the server lives.
struct ModelFacts {
  std::string name;
  ModelConfig config;
  EngineShape shape;
  const Tokenizer* tokenizer = nullptr;  // outlives the server
  // For requests that do not say.
  GenerationMode default_mode = GenerationMode::kExact;
  int default_max_tokens = 256;
};

}  // namespace photon
