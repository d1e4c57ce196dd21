#include "server/auth/inherited_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace photon {
namespace {

constexpr std::string_view kScheme = "fd:";
constexpr int kFirstDescriptor = 3;

int NumberIn(const std::map<std::string, std::string>& environment, const char* variable) {
  const auto found = environment.find(variable);
  int number = 0;
  return found != environment.end() && absl::SimpleAtoi(found->second, &number) ? number : 0;
}

}  // namespace

bool IsInherited(const std::string& address) {
  return address.starts_with(kScheme);
}

absl::StatusOr<std::string> ResolveInherited(
    const std::string& address, const std::map<std::string, std::string>& environment) {
  if (!IsInherited(address)) return address;
  const std::string name = address.substr(kScheme.size());
  const int count = NumberIn(environment, "LISTEN_FDS");
  // Variables that were meant for a parent of this process say nothing about it.
  const bool is_ours = !environment.contains("LISTEN_PID") ||
                       NumberIn(environment, "LISTEN_PID") == static_cast<int>(getpid());
  if (count < 1 || !is_ours) {
    return absl::InvalidArgumentError(
        absl::StrCat(address, ": no sockets were handed to this process (LISTEN_FDS)"));
  }
  int descriptor = 0;
  if (absl::SimpleAtoi(name, &descriptor)) {
    if (descriptor >= kFirstDescriptor && descriptor < kFirstDescriptor + count) return address;
    return absl::InvalidArgumentError(absl::StrCat(address, ": expected ", kFirstDescriptor, " to ",
                                                   kFirstDescriptor + count - 1));
  }
  const auto names = environment.find("LISTEN_FDNAMES");
  std::vector<std::string> known;
  if (names != environment.end()) known = absl::StrSplit(names->second, ':');
  const auto found = std::find(known.begin(), known.end(), name);
  const auto index = static_cast<int>(found - known.begin());
  if (found == known.end() || index >= count) {
    return absl::InvalidArgumentError(
        absl::StrCat(address, ": no socket of this name was handed over (LISTEN_FDNAMES)"));
  }
  return absl::StrCat(std::string(kScheme), kFirstDescriptor + index);
}

absl::StatusOr<int> OpenInherited(const std::string& address) {
  int descriptor = -1;
  int listens = 0;
  socklen_t size = sizeof(listens);
  if (!absl::SimpleAtoi(address.substr(kScheme.size()), &descriptor) ||
      getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || listens == 0) {
    return absl::UnavailableError(absl::StrCat("listen: ", address, " is no listening socket"));
  }
  const int fd = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return absl::UnavailableError(absl::StrCat("listen: cannot duplicate ", address));
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  return fd;
}

std::string AddressOf(int socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "";
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address.ss_family == AF_INET) {
    const auto& ip = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &ip.sin_addr, text.data(), text.size());
    return absl::StrCat(text.data(), ":", ntohs(ip.sin_port));
  }
  if (address.ss_family == AF_INET6) {
    const auto& ip = reinterpret_cast<const sockaddr_in6&>(address);
    inet_ntop(AF_INET6, &ip.sin6_addr, text.data(), text.size());
    return absl::StrCat("[", text.data(), "]:", ntohs(ip.sin6_port));
  }
  return absl::StrCat("unix:", reinterpret_cast<const sockaddr_un&>(address).sun_path);
}

}  // namespace photon
