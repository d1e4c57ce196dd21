#include "bench/metrics_scrape.h"

#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <cstdlib>
#include <iterator>
#include <sstream>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace photon {
namespace {

constexpr auto kTimeout = std::chrono::seconds(10);

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool OnlyGrows(std::string_view name) {
  return EndsWith(name, "_total") || EndsWith(name, "_sum") || EndsWith(name, "_count");
}

}  // namespace

ScrapedMetrics ParseMetrics(const std::string& text) {
  ScrapedMetrics metrics;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] == '#') continue;
    const size_t name_end = line.find_first_of("{ ");
    const size_t value = line.rfind(' ');
    if (name_end == std::string::npos || value == std::string::npos) continue;
    const std::string name = line.substr(0, name_end);
    if (!EndsWith(name, "_bucket")) metrics[name] += std::atof(line.c_str() + value);
  }
  return metrics;
}

absl::StatusOr<ScrapedMetrics> ScrapeMetrics(const std::string& address) {
  const size_t colon = address.rfind(':');
  boost::asio::ip::tcp::iostream stream;
  stream.expires_after(kTimeout);
  stream.connect(address.substr(0, colon),
                 colon == std::string::npos ? "80" : address.substr(colon + 1));
  stream << "GET /metrics HTTP/1.1\r\nHost: " << address << "\r\nConnection: close\r\n\r\n"
         << std::flush;
  const std::string answer{std::istreambuf_iterator<char>(stream), {}};
  const size_t body = answer.find("\r\n\r\n");
  if (answer.find(" 200 ") != std::string("HTTP/1.1").size() || body == std::string::npos) {
    return absl::UnavailableError(absl::StrCat(
        "http://", address,
        "/metrics: ", answer.empty() ? stream.error().message() : answer.substr(0, 80)));
  }
  return ParseMetrics(answer.substr(body + 4));
}

ScrapedMetrics MetricsBetween(const ScrapedMetrics& begin, const ScrapedMetrics& end) {
  ScrapedMetrics between = end;
  for (auto& [name, value] : between) {
    const auto before = begin.find(name);
    if (OnlyGrows(name) && before != begin.end()) value -= before->second;
  }
  return between;
}

}  // namespace photon
