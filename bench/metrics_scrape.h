// A server's own metrics, read over HTTP beside a load.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace photon {

// By name, without labels: series that differ in labels alone are added up. Buckets of histograms
// are left out.
using ScrapedMetrics = std::map<std::string, double>;

// Of Prometheus's text format.
ScrapedMetrics ParseMetrics(const std::string& text);

// GETs http://`address`/metrics; `address` is "host:port". kUnavailable: nobody answers, or not
// with 200.
absl::StatusOr<ScrapedMetrics> ScrapeMetrics(const std::string& address);

// What happened between two scrapes: differences of counters and of histograms' sums and counts,
// gauges as they are in `end`.
ScrapedMetrics MetricsBetween(const ScrapedMetrics& begin, const ScrapedMetrics& end);

}  // namespace photon
