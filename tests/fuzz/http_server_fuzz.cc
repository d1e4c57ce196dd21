// Any bytes sent to the HTTP port, over a socket: each connection is answered in HTTP/1 or closed,
// what the handler gets keeps its promises, and the port goes on serving.
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "server/http/http_server.h"

namespace {

constexpr int kMaxBodyBytes = 4096;

std::shared_ptr<photon::HttpAnswer> Answer(photon::HttpRequest request) {
  if (request.method.empty() || request.path.empty() || request.path.front() != '/') std::abort();
  if (request.body.size() > kMaxBodyBytes) std::abort();
  for (const auto& [name, value] : request.headers) {
    if (std::any_of(name.begin(), name.end(), [](char c) { return c >= 'A' && c <= 'Z'; })) {
      std::abort();
    }
    if (value.find_first_of("\r\n") != std::string::npos) std::abort();
  }
  photon::HttpResponse response;
  response.body = "served " + request.method;
  return photon::AnswerAtOnce(std::move(response));
}

int PortOfServer() {
  static const std::unique_ptr<photon::HttpServer> server = [] {
    photon::HttpOptions options;
    options.listen = "127.0.0.1:0";
    options.threads = 1;
    options.max_header_bytes = 1024;
    options.max_body_bytes = kMaxBodyBytes;
    auto started = photon::HttpServer::Start(
        options, [](photon::HttpRequest request, const photon::HttpWaker&) {
          return Answer(std::move(request));
        });
    if (!started.ok()) std::abort();
    return *std::move(started);
  }();
  const std::string& address = server->address();
  return std::stoi(address.substr(address.rfind(':') + 1));
}

// What the server says until it closes.
std::string Exchange(std::string_view sent) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(static_cast<uint16_t>(PortOfServer()));
  if (connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0) std::abort();
  // Small enough for the buffers of the kernel; the server may have closed already.
  (void)!send(fd, sent.data(), sent.size(), MSG_NOSIGNAL);
  shutdown(fd, SHUT_WR);
  std::string answer;
  std::array<char, 4096> buffer;
  ssize_t count = 0;
  while ((count = recv(fd, buffer.data(), buffer.size(), 0)) > 0) {
    answer.append(buffer.data(), count);
  }
  // So that the port is free for the next one at once.
  const linger at_once = {.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  close(fd);
  return answer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 32768) return 0;
  const std::string answer = Exchange({reinterpret_cast<const char*>(data), size});
  if (!answer.empty() && !answer.starts_with("HTTP/1.")) std::abort();
  static int served = 0;
  if (++served % 64 == 0) {
    const std::string whole = Exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    if (whole.find("served GET") == std::string::npos) std::abort();
  }
  return 0;
}
