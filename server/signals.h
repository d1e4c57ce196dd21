// SIGTERM and SIGINT drain the server, a second one ends the process at once; SIGHUP has files
// read again.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace photon {

// Hears the signals for as long as it lives.
class ServerSignals {
 public:
  // On a thread of this class; neither may block for long.
  struct Actions {
    std::function<void()> drain;
    std::function<void()> reload;
  };

  // Call before any thread starts: threads inherit the mask.
  static void Block();

  explicit ServerSignals(Actions actions);
  ~ServerSignals();
  ServerSignals(const ServerSignals&) = delete;
  ServerSignals& operator=(const ServerSignals&) = delete;

 private:
  void Run();

  const Actions actions_;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace photon
