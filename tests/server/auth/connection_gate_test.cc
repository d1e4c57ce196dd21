#include "server/auth/connection_gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace photon {
namespace {

using ::testing::HasSubstr;

// A socket, as one end or the other has it.
class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&&) = delete;
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  int fd() const { return fd_; }
  // Blocks until the other end says something or closes: true if it closes.
  bool AwaitClosed() const {
    char byte = 0;
    return recv(fd_, &byte, 1, 0) <= 0;
  }

 private:
  int fd_;
};

Socket Connect(const std::string& address) {
  const int port = std::stoi(address.substr(address.rfind(':') + 1));
  const bool v6 = address.front() == '[';
  Socket result(socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0));
  sockaddr_in v4_name{};
  v4_name.sin_family = AF_INET;
  v4_name.sin_port = htons(static_cast<uint16_t>(port));
  v4_name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sockaddr_in6 v6_name{};
  v6_name.sin6_family = AF_INET6;
  v6_name.sin6_port = htons(static_cast<uint16_t>(port));
  v6_name.sin6_addr = in6addr_loopback;
  const auto* name = v6 ? reinterpret_cast<const sockaddr*>(&v6_name)
                        : reinterpret_cast<const sockaddr*>(&v4_name);
  EXPECT_EQ(connect(result.fd(), name, v6 ? sizeof(v6_name) : sizeof(v4_name)), 0)
      << std::strerror(errno);
  return result;
}

// Keeps the connections that a gate hands on.
class Kept {
 public:
  ConnectionGate::Receiver Receiver() {
    return [this](int, int fd) {
      std::lock_guard lock(mutex_);
      sockets_.emplace_back(fd);
      changed_.notify_all();
    };
  }
  void Await(size_t number) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return sockets_.size() >= number; });
  }
  // As gRPC closes: shut down first.
  void CloseAll() {
    std::lock_guard lock(mutex_);
    for (const Socket& socket : sockets_) shutdown(socket.fd(), SHUT_RDWR);
    sockets_.clear();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Socket> sockets_;
};

void AwaitConnections(const ConnectionGate& gate, int number) {
  while (gate.num_connections() != number) std::this_thread::yield();
}

std::unique_ptr<ConnectionGate> Listen(const std::string& address,
                                       const ConnectionLimits& limits = {}) {
  auto gate = ConnectionGate::Listen(address, limits);
  EXPECT_TRUE(gate.ok()) << gate.status();
  return *std::move(gate);
}

TEST(ConnectionGate, HandsOnWhatConnectsAndForgetsWhatCloses) {
  Kept kept;
  const auto gate = Listen("127.0.0.1:0");
  gate->Open(kept.Receiver());
  {
    const Socket first = Connect(gate->address());
    const Socket second = Connect(gate->address());
    kept.Await(2);
    EXPECT_EQ(gate->num_connections(), 2);
    kept.CloseAll();
    EXPECT_TRUE(first.AwaitClosed());
    EXPECT_TRUE(second.AwaitClosed());
  }
  AwaitConnections(*gate, 0);
  EXPECT_EQ(gate->num_refused(), 0);
}

TEST(ConnectionGate, ClosesWhatIsBeyondTheLimitUntilOthersEnd) {
  Kept kept;
  const auto gate = Listen("127.0.0.1:0", {.max_connections = 2});
  gate->Open(kept.Receiver());
  const Socket first = Connect(gate->address());
  const Socket second = Connect(gate->address());
  const Socket refused = Connect(gate->address());
  EXPECT_TRUE(refused.AwaitClosed());
  EXPECT_EQ(gate->num_connections(), 2);
  EXPECT_EQ(gate->num_refused(), 1);
  kept.Await(2);
  kept.CloseAll();
  AwaitConnections(*gate, 0);
  const Socket next = Connect(gate->address());
  AwaitConnections(*gate, 1);
  EXPECT_EQ(gate->num_refused(), 1);
}

TEST(ConnectionGate, LimitsEachAddressByItself) {
  Kept kept;
  const auto gate = Listen("localhost:0", {.max_per_address = 1});
  gate->Open(kept.Receiver());
  const std::string port = gate->address().substr(gate->address().rfind(':'));
  const Socket v4 = Connect("127.0.0.1" + port);
  kept.Await(1);
  EXPECT_TRUE(Connect("127.0.0.1" + port).AwaitClosed());
  EXPECT_EQ(gate->num_connections(), 1);
  kept.CloseAll();
  AwaitConnections(*gate, 0);
  const Socket again = Connect("127.0.0.1" + port);
  AwaitConnections(*gate, 1);
}

TEST(ConnectionGate, GoesOnAfterItHasRunOutOfDescriptors) {
  Kept kept;
  const auto gate = Listen("127.0.0.1:0");
  gate->Open(kept.Receiver());
  const Socket before = Connect(gate->address());
  kept.Await(1);

  // The kernel makes the connection; the gate lacks the descriptor to take it.
  const Socket waiting(socket(AF_INET, SOCK_STREAM, 0));
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const int next = dup(0);
  close(next);
  const rlimit none = {.rlim_cur = static_cast<rlim_t>(next), .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(
      static_cast<uint16_t>(std::stoi(gate->address().substr(gate->address().rfind(':') + 1))));
  ASSERT_EQ(connect(waiting.fd(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)), 0);
  EXPECT_EQ(dup(0), -1);
  EXPECT_EQ(gate->num_connections(), 1);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  kept.Await(2);
  EXPECT_EQ(gate->num_connections(), 2);
}

TEST(ConnectionGate, ASecondServerOnThePortIsAnError) {
  const auto gate = Listen("127.0.0.1:0");
  const auto second = ConnectionGate::Listen(gate->address(), {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("in use"));
  EXPECT_EQ(ConnectionGate::Listen("nowhere.invalid:1", {}).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(ConnectionGate, UnixSocketsOfLivingServersAreNotTakenOver) {
  const std::string path = ::testing::TempDir() + "/gate.sock";
  std::filesystem::remove(path);
  const auto connect_to_path = [&] {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    path.copy(name.sun_path, sizeof(name.sun_path) - 1);
    Socket client(socket(AF_UNIX, SOCK_STREAM, 0));
    EXPECT_EQ(connect(client.fd(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)), 0);
    return client;
  };
  Kept kept;
  {
    const auto gate = Listen("unix:" + path);
    EXPECT_FALSE(ConnectionGate::Listen("unix:" + path, {}).ok());
    gate->Open(kept.Receiver());
    const Socket client = connect_to_path();
    kept.Await(2);  // the other's look whether anybody listens, and the client
    AwaitConnections(*gate, 1);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  // What a server that was killed leaves behind.
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  path.copy(name.sun_path, sizeof(name.sun_path) - 1);
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)), 0);
  close(fd);
  const auto gate = Listen("unix:" + path);
  gate->Open(kept.Receiver());
  const Socket client = connect_to_path();
  kept.Await(3);
}

}  // namespace
}  // namespace photon
