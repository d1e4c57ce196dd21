// Listens, and counts: how many connections a server has, in all and from one address.
//
// gRPC's listener takes every connection there is, and stops for good once the process has no
// descriptors left. This one closes what is beyond the limits at once, and waits while there are no
// descriptors. It hands sockets on; to learn when they close it keeps a second descriptor of each,
// on which the kernel reports the hang-up.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"

namespace photon {

struct ConnectionLimits {
  int max_connections = 4096;
  int max_per_address = 4096;  // of clients; unix sockets count as one address
};

class ConnectionGate {
 public:
  // What a connection is handed to, which owns `fd` and shuts it down before it closes it.
  using Receiver = std::function<void(int listener_fd, int fd)>;

  // Listens on "HOST:PORT", "[ADDRESS]:PORT", "unix:PATH", "unix-abstract:NAME" or an inherited
  // socket, "fd:3"; port 0 takes a free one. A name is listened on at all of its addresses.
  // Connections wait until Open. kUnavailable: the address cannot be bound, as when another server
  // is there.
  static absl::StatusOr<std::unique_ptr<ConnectionGate>> Listen(const std::string& address,
                                                                const ConnectionLimits& limits);

  // Listens no more. Connections go on.
  ~ConnectionGate();
  ConnectionGate(const ConnectionGate&) = delete;
  ConnectionGate& operator=(const ConnectionGate&) = delete;

  // Hands connections to `receiver` from now on, on a thread of the gate. Once.
  void Open(Receiver receiver);

  // Listens no more, soon: connections that wait in the queue of a socket that others share are
  // theirs. `then` is called on the gate's thread once all connections have been handed on. Any
  // thread.
  void StopListening(std::function<void()> then);
  // Listens no more if others share the socket, and so take what comes. Any thread.
  void LeaveToOthers();

  // With the port that was taken.
  const std::string& address() const { return address_; }

  // Any thread.
  int num_connections() const;
  int64_t num_refused() const;

 private:
  ConnectionGate(std::string address, const ConnectionLimits& limits);

  void Run(const Receiver& receiver);
  void Accept(int listener, const Receiver& receiver);
  void Closed(int watch_fd);
  // Does what the thread was woken for. False: it ends.
  bool Obey();

  std::string address_;
  std::string unix_path_;  // of the socket, to be removed
  const ConnectionLimits limits_;
  std::vector<int> listeners_;
  int epoll_fd_ = -1;
  int stop_fd_ = -1;
  bool inherited_ = false;
  bool paused_ = false;  // of the thread: no descriptors are left

  mutable std::mutex mutex_;
  std::unordered_map<int, std::string> peers_ ABSL_GUARDED_BY(mutex_);  // by second descriptor
  std::unordered_map<std::string, int> per_address_ ABSL_GUARDED_BY(mutex_);
  int64_t num_refused_ ABSL_GUARDED_BY(mutex_) = 0;
  bool leaving_ ABSL_GUARDED_BY(mutex_) = false;  // the thread is to close the listeners
  std::vector<std::function<void()>> when_left_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;  // it is to end
  std::thread thread_;                             // the last member: it uses the others
};

}  // namespace photon
