// What the operating system says of this process, under the names that every exporter uses.
#pragma once

#include <prometheus/metric_family.h>

#include <vector>

namespace photon {

// process_resident_memory_bytes, process_cpu_seconds_total, process_open_fds and
// process_start_time_seconds, as far as /proc tells. Any thread.
std::vector<prometheus::MetricFamily> ProcessMetrics();

}  // namespace photon
