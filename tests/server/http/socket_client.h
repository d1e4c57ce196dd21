// A TCP client that sends what it is told to, as it is told to.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace photon {

class SocketClient {
 public:
  // Connects to "127.0.0.1:PORT". `receive_buffer`: of the kernel, in bytes; 0: its default.
  explicit SocketClient(const std::string& address, int receive_buffer = 0) {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer > 0) {
      ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    const timeval patience = {.tv_sec = 30, .tv_usec = 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(std::atoi(address.c_str() + address.rfind(':') + 1)));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0;
  }
  ~SocketClient() { Close(); }
  SocketClient(SocketClient&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)),
        connected_(other.connected_),
        received_(std::move(other.received_)) {}
  SocketClient& operator=(SocketClient&&) = delete;

  bool connected() const { return connected_; }

  // False: the server has closed.
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(sent);
    }
    return true;
  }

  // What has come, until `marker` has; or nothing, if the server closes or is silent before that.
  std::optional<std::string> ReadUntil(std::string_view marker) {
    size_t found;
    while ((found = received_.find(marker)) == std::string::npos) {
      if (!Receive()) return std::nullopt;
    }
    std::string text = received_.substr(0, found + marker.size());
    received_.erase(0, text.size());
    return text;
  }

  // Until the server closes.
  std::string ReadAll() {
    while (Receive()) {
    }
    return std::exchange(received_, {});
  }

  struct Response {
    int status = 0;
    std::string head;  // in lower case
    std::string body;  // without chunk sizes
  };

  // The next response; status 0: there is none. `has_body` is false for answers to HEAD.
  Response ReadResponse(bool has_body = true) {
    Response response;
    const auto head = ReadUntil("\r\n\r\n");
    if (!head.has_value() || head->size() < 12) return response;
    response.head = *head;
    std::transform(head->begin(), head->end(), response.head.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    response.status = std::atoi(head->c_str() + 9);
    if (!has_body) return response;
    if (const size_t at = response.head.find("content-length: "); at != std::string::npos) {
      const size_t size = std::strtoul(response.head.c_str() + at + 16, nullptr, 10);
      while (received_.size() < size) {
        if (!Receive()) return {};
      }
      response.body = received_.substr(0, size);
      received_.erase(0, size);
    } else if (response.head.find("transfer-encoding: chunked") != std::string::npos) {
      while (auto chunk = ReadChunk()) {
        if (chunk->empty()) return response;
        response.body += *chunk;
      }
      return {};
    } else {
      response.body = ReadAll();
    }
    return response;
  }

  // The next chunk of a body; an empty one is the last.
  std::optional<std::string> ReadChunk() {
    const auto line = ReadUntil("\r\n");
    if (!line.has_value()) return std::nullopt;
    const size_t size = std::strtoul(line->c_str(), nullptr, 16);
    while (received_.size() < size + 2) {
      if (!Receive()) return std::nullopt;
    }
    std::string chunk = received_.substr(0, size);
    received_.erase(0, size + 2);
    return chunk;
  }

  // Ends the connection, with a reset if `reset`.
  void Close(bool reset = false) {
    if (fd_ < 0) return;
    if (reset) {
      const linger now = {.l_onoff = 1, .l_linger = 0};
      ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    }
    ::close(std::exchange(fd_, -1));
  }

 private:
  bool Receive() {
    char bytes[16384];
    const ssize_t count = ::recv(fd_, bytes, sizeof(bytes), 0);
    if (count <= 0) return false;
    received_.append(bytes, count);
    return true;
  }

  int fd_;
  bool connected_ = false;
  std::string received_;
};

}  // namespace photon
