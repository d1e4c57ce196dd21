#include "server/auth/inherited_socket.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/auth/connection_gate.h"

namespace photon {
namespace {

using ::testing::HasSubstr;

std::map<std::string, std::string> Handed(int count, const std::string& names) {
  return {{"LISTEN_FDS", std::to_string(count)},
          {"LISTEN_PID", std::to_string(getpid())},
          {"LISTEN_FDNAMES", names}};
}

TEST(InheritedSocket, AddressesOfOtherKindsStayWhatTheyAre) {
  for (const char* address : {"127.0.0.1:0", "unix:/run/photon.sock", "off", ""}) {
    EXPECT_EQ(*ResolveInherited(address, {}), address);
  }
}

TEST(InheritedSocket, NamesAreFoundInTheOrderOfTheirDescriptors) {
  const auto environment = Handed(2, "grpc:http");
  EXPECT_EQ(*ResolveInherited("fd:grpc", environment), "fd:3");
  EXPECT_EQ(*ResolveInherited("fd:http", environment), "fd:4");
  EXPECT_EQ(*ResolveInherited("fd:4", environment), "fd:4");
}

TEST(InheritedSocket, WhatWasNotHandedOverIsNamed) {
  const auto error = [](const std::string& address, const auto& environment) {
    return std::string(ResolveInherited(address, environment).status().message());
  };
  EXPECT_THAT(error("fd:grpc", std::map<std::string, std::string>()), HasSubstr("LISTEN_FDS"));
  EXPECT_THAT(error("fd:health", Handed(2, "grpc:http")), HasSubstr("fd:health: no socket"));
  EXPECT_THAT(error("fd:http", Handed(1, "grpc:http")), HasSubstr("fd:http: no socket"));
  EXPECT_THAT(error("fd:5", Handed(2, "")), HasSubstr("fd:5: expected 3 to 4"));
  auto of_another = Handed(2, "grpc:http");
  of_another["LISTEN_PID"] = "1";
  EXPECT_THAT(error("fd:grpc", of_another), HasSubstr("no sockets were handed"));
}

TEST(InheritedSocket, OnlySocketsThatListenAreTaken) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_THAT(std::string(OpenInherited(absl::StrCat("fd:", fd)).status().message()),
              HasSubstr("is no listening socket"));
  close(fd);
  EXPECT_FALSE(OpenInherited("fd:").ok());
}

// Counts what a gate hands on, and closes it.
class Arrivals {
 public:
  ConnectionGate::Receiver Receiver() {
    return [this](int, int fd) {
      shutdown(fd, SHUT_RDWR);
      close(fd);
      std::lock_guard lock(mutex_);
      ++count_;
      changed_.notify_all();
    };
  }
  void Await(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

class SharedSocketTest : public ::testing::Test {
 protected:
  SharedSocketTest() {
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(fd_, reinterpret_cast<const sockaddr*>(&name), sizeof(name)), 0);
    EXPECT_EQ(listen(fd_, 16), 0);
  }
  ~SharedSocketTest() override {
    for (const int fd : clients_) close(fd);
    close(fd_);
  }

  std::unique_ptr<ConnectionGate> Open(Arrivals& arrivals) {
    auto gate = ConnectionGate::Listen(absl::StrCat("fd:", fd_), {});
    EXPECT_TRUE(gate.ok()) << gate.status();
    (*gate)->Open(arrivals.Receiver());
    return *std::move(gate);
  }

  void Connect() {
    sockaddr_in name{};
    socklen_t size = sizeof(name);
    getsockname(fd_, reinterpret_cast<sockaddr*>(&name), &size);
    clients_.push_back(socket(AF_INET, SOCK_STREAM, 0));
    EXPECT_EQ(connect(clients_.back(), reinterpret_cast<const sockaddr*>(&name), size), 0);
  }

  const int fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  std::vector<int> clients_;
};

TEST_F(SharedSocketTest, AGateKnowsWhereItListens) {
  Arrivals arrivals;
  const auto gate = Open(arrivals);
  EXPECT_EQ(gate->address(), AddressOf(fd_));
  Connect();
  arrivals.Await(1);
}

TEST_F(SharedSocketTest, ConnectionsThatAGateLeavesToOthersAreNotLost) {
  Arrivals first_arrivals, second_arrivals;
  auto first = Open(first_arrivals);
  Connect();
  first_arrivals.Await(1);
  first->LeaveToOthers();
  first.reset();
  // They wait in the queue of the socket, which is still there.
  Connect();
  Connect();
  const auto second = Open(second_arrivals);
  second_arrivals.Await(2);
}

TEST(ConnectionGate, ASocketOfItsOwnIsNotLeftToOthers) {
  Arrivals arrivals;
  auto gate = ConnectionGate::Listen("127.0.0.1:0", {});
  ASSERT_TRUE(gate.ok());
  (*gate)->Open(arrivals.Receiver());
  (*gate)->LeaveToOthers();
  const int port = std::stoi((*gate)->address().substr((*gate)->address().rfind(':') + 1));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(static_cast<uint16_t>(port));
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)), 0);
  arrivals.Await(1);
  close(fd);
}

}  // namespace
}  // namespace photon
