// A model of facts only: what the server believes of the fake engine's model.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "engine/model/tokenizer.h"
#include "server/model_facts.h"
#include "tests/scheduler/fake_engine.h"

namespace photon {

inline const Tokenizer& TestTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    auto loaded = Tokenizer::Load(PHOTON_TEST_DATA "/tokenizer/bytes.model");
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return *std::move(loaded);
  }();
  return *tokenizer;
}

// Shares what somebody else owns, and outlives.
template <typename T>
std::shared_ptr<T> Borrowed(T* object) {
  return std::shared_ptr<T>(std::shared_ptr<void>(), object);
}

// Meta-contexts of 4 tokens, a context of 4096, the test tokenizer's vocabulary.
inline EngineShape TestShape() {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.vocab_size = TestTokenizer().vocab_size();
  shape.max_context = 4096;
  shape.page_tokens = 16;
  shape.num_pages = 1024;
  shape.max_rows = 8;
  shape.max_prefill_tokens = 256;
  shape.modes = {GenerationMode::kExact, GenerationMode::kHierGen};
  return shape;
}

inline ModelFacts TestModel(const EngineShape& shape = TestShape()) {
  ModelFacts model;
  model.name = "test";
  model.config.vocab_size = shape.vocab_size;
  model.config.embedding_dim = 8;
  model.config.bos_token_id = 1;
  model.config.eos_token_ids = {2};
  LevelConfig level;
  level.chunk_size = 4;
  level.converter_width = 2;
  level.chunker.type = ChunkerConfig::Type::kConcat;
  level.encoder = {.hidden_size = 32,
                   .num_layers = 1,
                   .num_heads = 2,
                   .num_kv_heads = 1,
                   .head_dim = 16,
                   .intermediate_size = 64};
  level.decoder = {.hidden_size = 8,
                   .num_layers = 1,
                   .num_heads = 1,
                   .num_kv_heads = 1,
                   .head_dim = 8,
                   .intermediate_size = 16};
  model.config.levels = {level};
  model.config.max_context = shape.max_context;
  model.shape = shape;
  model.tokenizer = Borrowed(&TestTokenizer());
  model.default_max_tokens = 16;
  return model;
}

}  // namespace photon
