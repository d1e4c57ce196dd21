// The server's messages as text for people and, as JSON, for programs.
#pragma once

#include <string>

#include "google/protobuf/message.h"
#include "photon/v1/document.pb.h"
#include "photon/v1/generation.pb.h"
#include "photon/v1/model.pb.h"

namespace photon {

// "exact", "hiergen" or "recgen"; "default" for the unspecified mode.
std::string ModeName(v1::GenerationMode mode);

// How a generation went, two lines:
//   64 tokens in 0.41 s, 156.1 tokens/s; ended by max-tokens
//   exact, seed 7; prompt 12 tokens, 0 of them cached; queue 0.1 ms, prefill 3.2 ms, decode 402.0
//   ms, 5 steps
std::string ResultText(const v1::GenerationResult& result);

// A line per fact, names aligned.
std::string ModelInfoText(const v1::GetModelInfoResponse& info);

// What became of a query's samples, and a line for each answer:
//   5 samples finished, 3 cancelled, 1 without an answer; 210 tokens, at most 96 more saved
//   4 votes, first sample 0: 42
std::string IntegrationText(const v1::IntegrationResult& integration);

// One line: id, tokens, bytes, when it expires, name.
std::string DocumentText(const v1::Document& document);

// A line per fact, names aligned.
std::string EstimateText(const v1::EstimateCostResponse& estimate);

// One line of JSON under the proto's field names; fields at their defaults included.
std::string JsonLine(const google::protobuf::Message& message);

}  // namespace photon
