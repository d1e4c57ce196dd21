// What a load's records say: throughput, latencies, and the scheduler's steps.
//
// Metrics are flat JSON objects of numbers, so that medians over repeats, files and tables need to
// know none of them:
//
//   seconds              of the window
//   tokens_per_second    generated, that came in the window
//   calls_per_second     that were done in the window
//   refused_percent      of the calls, for want of room
//   good_calls_per_second  that kept to the service level (goodput), and their share:
//   good_percent
//   ttft_ms_*            from when a call was due to the first token of each of its sequences
//   e2e_ms_*             from there to the last token of the call
//   queue_ms_*           from a sequence's arrival at the server to its first step
//   gap_ms_*             between a sequence's tokens; tokens that come together count as one
//   cached_percent       of the prompts' tokens, found in the cache
//
// and where the scheduler is in this process:
//
//   steps, rows_per_step, step_ms, generated_per_step
//   host_us_per_step     the engine stood still between two steps though there was work
//   host_percent         that time by the time in steps
//   wasted_percent       of the slots decoded, behind the end of an output
//   peak_pages_in_use, peak_bytes_in_use
//
// `*` is p50, p95, p99 and max.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/serving_load.h"
#include "bench/serving_target.h"

namespace photon {

// The smallest of `values` that at least `percent` of them do not exceed; 0 without values.
double Percentile(std::vector<double> values, double percent);

double Median(const std::vector<double>& values);

nlohmann::json ServingMetrics(const LoadRecord& record, const ServingFacts& facts,
                              const ServiceLevel& level = {});

// Of RunArrival's record: `before_*`, `during_*` and `after_*` of the streams' gaps and tokens per
// second, split at the sending of the last call and at its first token; `arrival_ttft_ms` of that
// call.
nlohmann::json ArrivalMetrics(const LoadRecord& record);

// Of each number, over repeats; all have the same keys.
nlohmann::json MedianOf(const std::vector<nlohmann::json>& repeats);

}  // namespace photon
