#include "server/metrics/process_metrics.h"

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>

namespace photon {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// Seconds from the epoch to the boot.
int64_t BootTime() {
  std::ifstream file("/proc/stat");
  std::string word;
  int64_t value = 0;
  while (file >> word) {
    if (word == "btime" && file >> value) return value;
  }
  return 0;
}

MetricFamily Single(const char* name, const char* help, MetricType type, double value) {
  ClientMetric metric;
  (type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  return {.name = name, .help = help, .type = type, .metric = {std::move(metric)}};
}

}  // namespace

std::vector<MetricFamily> ProcessMetrics() {
  std::vector<MetricFamily> families;
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');  // the name itself may have any character
  if (name_end != std::string::npos) {
    std::istringstream rest(line.substr(name_end + 1));
    const std::vector<std::string> fields{std::istream_iterator<std::string>(rest), {}};
    // Numbered as in proc(5), where the first field after the name is 3.
    const auto field = [&](size_t number) {
      return number - 3 < fields.size() ? std::stod(fields[number - 3]) : 0.0;
    };
    const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
    families.push_back(Single("process_cpu_seconds_total", "Processor time, user and system.",
                              MetricType::Counter, (field(14) + field(15)) / ticks));
    families.push_back(Single("process_start_time_seconds", "When the process started.",
                              MetricType::Gauge,
                              static_cast<double>(BootTime()) + field(22) / ticks));
    families.push_back(Single("process_resident_memory_bytes", "Memory that is resident.",
                              MetricType::Gauge,
                              field(24) * static_cast<double>(sysconf(_SC_PAGESIZE))));
  }
  std::error_code error;
  const std::filesystem::directory_iterator descriptors("/proc/self/fd", error);
  if (!error) {
    families.push_back(
        Single("process_open_fds", "Open file descriptors.", MetricType::Gauge,
               static_cast<double>(std::distance(begin(descriptors), end(descriptors)))));
  }
  return families;
}

}  // namespace photon
