#include "server/auth/connection_gate.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/auth/inherited_socket.h"

namespace photon {
namespace {

constexpr int kBacklog = 1024;
constexpr int kMaxAcceptsPerTurn = 64;
// While no descriptors are left: how soon to look again, beside when a connection closes.
constexpr int kPauseMs = 100;

absl::Status ErrnoStatus(const std::string& address, int error) {
  return absl::UnavailableError(
      absl::StrCat("listen: cannot bind ", address, ": ", std::strerror(error)));
}

// "127.0.0.1" of "127.0.0.1:50051", "::1" of "[::1]:50051".
std::pair<std::string, std::string> SplitHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  return {host, address.substr(colon + 1)};
}

int PortOf(int socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  if (address.ss_family == AF_INET) {
    return ntohs(reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in6*>(&address)->sin6_port);
}

void SetPort(sockaddr* address, int port) {
  if (address->sa_family == AF_INET) {
    reinterpret_cast<sockaddr_in*>(address)->sin_port = htons(static_cast<uint16_t>(port));
  } else {
    reinterpret_cast<sockaddr_in6*>(address)->sin6_port = htons(static_cast<uint16_t>(port));
  }
}

// A listening socket, or errno negated.
int ListenOn(const sockaddr* address, socklen_t size) {
  const int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  const int on = 1;
  const int off = 0;
  if (address->sa_family != AF_UNIX) {
    // Binds although connections of an earlier server linger; a living one is still an error.
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  }
  if (address->sa_family == AF_INET6) {
    // As gRPC: [::] takes IPv4, too.
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  }
  if (bind(fd, address, size) != 0 || listen(fd, kBacklog) != 0) {
    const int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

// A socket file that no server listens on any more.
bool IsStale(const sockaddr_un& address, socklen_t size) {
  struct stat status;
  if (lstat(address.sun_path, &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const bool refused =
      connect(fd, reinterpret_cast<const sockaddr*>(&address), size) != 0 && errno == ECONNREFUSED;
  close(fd);
  return refused;
}

// A client's address without its port. IPv6 clients have networks of 64 bits.
std::string PeerOf(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    const auto& ip = reinterpret_cast<const sockaddr_in*>(&address)->sin_addr;
    return std::string(reinterpret_cast<const char*>(&ip), sizeof(ip));
  }
  if (address.ss_family == AF_INET6) {
    const auto& ip = reinterpret_cast<const sockaddr_in6*>(&address)->sin6_addr;
    const auto* bytes = reinterpret_cast<const char*>(&ip);
    return IN6_IS_ADDR_V4MAPPED(&ip) ? std::string(bytes + 12, 4) : std::string(bytes, 8);
  }
  return "";
}

bool NoDescriptors(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

void Watch(int epoll_fd, int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

}  // namespace

ConnectionGate::ConnectionGate(std::string address, const ConnectionLimits& limits)
    : address_(std::move(address)), limits_(limits) {
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  stop_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
}

absl::StatusOr<std::unique_ptr<ConnectionGate>> ConnectionGate::Listen(
    const std::string& address, const ConnectionLimits& limits) {
  std::unique_ptr<ConnectionGate> gate(new ConnectionGate(address, limits));
  if (gate->epoll_fd_ < 0 || gate->stop_fd_ < 0) return ErrnoStatus(address, errno);

  if (IsInherited(address)) {
    const absl::StatusOr<int> fd = OpenInherited(address);
    if (!fd.ok()) return fd.status();
    gate->listeners_.push_back(*fd);
    gate->inherited_ = true;
    gate->address_ = AddressOf(*fd);
    return gate;
  }
  for (const std::string_view scheme : {"unix:", "unix-abstract:"}) {
    if (!address.starts_with(scheme)) continue;
    const bool is_file = scheme == "unix:";
    std::string path = address.substr(scheme.size());
    if (is_file && path.starts_with("//")) path = path.substr(2);
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    // Abstract names begin with a zero byte, and end with the address.
    const size_t begin = is_file ? 0 : 1;
    if (path.empty() || path.size() + 1 >= sizeof(name.sun_path)) {
      return ErrnoStatus(address, ENAMETOOLONG);
    }
    path.copy(name.sun_path + begin, path.size());
    const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + path.size());
    if (is_file && IsStale(name, size)) unlink(path.c_str());
    const int fd = ListenOn(reinterpret_cast<const sockaddr*>(&name), size);
    if (fd < 0) return ErrnoStatus(address, -fd);
    gate->listeners_.push_back(fd);
    if (is_file) gate->unix_path_ = path;
    return gate;
  }

  const auto [host, port_text] = SplitHostPort(address);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), port_text.c_str(), &hints, &found); error != 0) {
    return absl::UnavailableError(
        absl::StrCat("listen: cannot bind ", address, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
  int port = 0;
  int last_error = 0;
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    if (info->ai_family != AF_INET && info->ai_family != AF_INET6) continue;
    if (port != 0) SetPort(info->ai_addr, port);
    const int fd = ListenOn(info->ai_addr, info->ai_addrlen);
    if (fd < 0) {
      last_error = -fd;
      // One that is taken fails the whole; one that this machine lacks does not.
      if (last_error == EADDRINUSE || last_error == EACCES) return ErrnoStatus(address, last_error);
      continue;
    }
    port = PortOf(fd);
    gate->listeners_.push_back(fd);
  }
  if (gate->listeners_.empty()) return ErrnoStatus(address, last_error);
  gate->address_ = absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
  return gate;
}

ConnectionGate::~ConnectionGate() {
  if (thread_.joinable()) {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    const uint64_t one = 1;
    // An eventfd at 0 takes it.
    (void)!write(stop_fd_, &one, sizeof(one));
    thread_.join();
  }
  for (const int fd : listeners_) close(fd);
  if (!unix_path_.empty()) unlink(unix_path_.c_str());
  {
    std::lock_guard lock(mutex_);
    for (const auto& [fd, peer] : peers_) close(fd);
  }
  if (stop_fd_ >= 0) close(stop_fd_);
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

void ConnectionGate::Open(Receiver receiver) {
  Watch(epoll_fd_, stop_fd_, EPOLLIN);
  for (const int fd : listeners_) Watch(epoll_fd_, fd, EPOLLIN);
  thread_ = std::thread([this, receiver = std::move(receiver)] { Run(receiver); });
}

void ConnectionGate::LeaveToOthers() {
  if (inherited_) StopListening([] {});
}

void ConnectionGate::StopListening(std::function<void()> then) {
  {
    std::lock_guard lock(mutex_);
    leaving_ = true;
    when_left_.push_back(std::move(then));
  }
  const uint64_t one = 1;
  (void)!write(stop_fd_, &one, sizeof(one));
}

int ConnectionGate::num_connections() const {
  std::lock_guard lock(mutex_);
  return static_cast<int>(peers_.size());
}

int64_t ConnectionGate::num_refused() const {
  std::lock_guard lock(mutex_);
  return num_refused_;
}

void ConnectionGate::Run(const Receiver& receiver) {
  const auto listen_for = [&](uint32_t events) {
    for (const int fd : listeners_) {
      epoll_event event{};
      event.events = events;
      event.data.fd = fd;
      epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, fd, &event);
    }
  };
  while (true) {
    std::array<epoll_event, 64> events;
    const bool was_paused = std::exchange(paused_, false);
    if (was_paused) listen_for(0);
    const int num_events = epoll_wait(epoll_fd_, events.data(), static_cast<int>(events.size()),
                                      was_paused ? kPauseMs : -1);
    if (was_paused) listen_for(EPOLLIN);
    for (int i = 0; i < num_events; ++i) {
      const int fd = events[i].data.fd;
      if (fd == stop_fd_) {
        if (!Obey()) return;
        continue;
      }
      bool is_listener = false;
      for (const int listener : listeners_) is_listener = is_listener || listener == fd;
      if (is_listener) {
        Accept(fd, receiver);
      } else {
        Closed(fd);
      }
    }
  }
}

bool ConnectionGate::Obey() {
  std::vector<std::function<void()>> when_left;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return false;
    uint64_t count = 0;
    (void)!read(stop_fd_, &count, sizeof(count));
    if (!leaving_) return true;
    when_left = std::exchange(when_left_, {});
  }
  for (const int fd : std::exchange(listeners_, {})) {
    // As long as others have the socket open, to close it is not enough.
    epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, nullptr);
    close(fd);
  }
  for (const auto& then : when_left) then();
  return true;
}

void ConnectionGate::Accept(int listener, const Receiver& receiver) {
  // Now and then others have their turn.
  for (int i = 0; i < kMaxAcceptsPerTurn; ++i) {
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    const int fd = accept4(listener, reinterpret_cast<sockaddr*>(&address), &size,
                           SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      paused_ = NoDescriptors(errno);
      return;
    }
    const std::string peer = PeerOf(address);
    int watch_fd = -1;
    {
      std::lock_guard lock(mutex_);
      const auto from_peer = per_address_.find(peer);
      const bool full =
          static_cast<int>(peers_.size()) >= limits_.max_connections ||
          (from_peer != per_address_.end() && from_peer->second >= limits_.max_per_address);
      if (!full) watch_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
      if (watch_fd < 0) {
        ++num_refused_;
      } else {
        peers_[watch_fd] = peer;
        ++per_address_[peer];
      }
    }
    if (watch_fd < 0) {
      close(fd);
      continue;
    }
    if (address.ss_family != AF_UNIX) {
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    receiver(listener, fd);
    // No events but those that are always reported: errors and the end of both directions.
    Watch(epoll_fd_, watch_fd, 0);
  }
}

void ConnectionGate::Closed(int watch_fd) {
  {
    std::lock_guard lock(mutex_);
    const auto found = peers_.find(watch_fd);
    if (found == peers_.end()) return;
    const auto from_peer = per_address_.find(found->second);
    if (--from_peer->second == 0) per_address_.erase(from_peer);
    peers_.erase(found);
  }
  close(watch_fd);
}

}  // namespace photon
