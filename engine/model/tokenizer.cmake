# SentencePiece model files: a target of its own, so that clients and tools can have the tokenizer
# without the rest of the model layer.
find_package(Protobuf REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(absl REQUIRED)

protobuf_generate_cpp(sentencepiece_sources sentencepiece_headers sentencepiece_model.proto)
set_source_files_properties(${sentencepiece_sources} PROPERTIES COMPILE_OPTIONS -w)

add_library(photon_tokenizer STATIC
  detokenizer.cc
  text_normalizer.cc
  tokenizer.cc
  ${sentencepiece_sources}
  ${sentencepiece_headers})
target_include_directories(photon_tokenizer PUBLIC ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
target_link_libraries(photon_tokenizer
  PUBLIC absl::flat_hash_map absl::flat_hash_set absl::status absl::statusor absl::strings
  PRIVATE protobuf::libprotobuf OpenSSL::Crypto)
