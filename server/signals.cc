#include "server/signals.h"

#include <pthread.h>
#include <spdlog/spdlog.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace photon {
namespace {

sigset_t Signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  return signals;
}

}  // namespace

void ServerSignals::Block() {
  const sigset_t signals = Signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

ServerSignals::ServerSignals(Actions actions)
    : actions_(std::move(actions)), thread_([this] { Run(); }) {}

ServerSignals::~ServerSignals() {
  stopping_ = true;
  pthread_kill(thread_.native_handle(), SIGTERM);
  thread_.join();
}

void ServerSignals::Run() {
  const sigset_t signals = Signals();
  for (bool draining = false;;) {
    int signal = 0;
    sigwait(&signals, &signal);
    if (stopping_) return;
    if (signal == SIGHUP) {
      actions_.reload();
      continue;
    }
    if (draining) {
      // Not through the log, which writes on a thread of its own.
      std::fputs("a second signal: ending at once\n", stderr);
      std::_Exit(EXIT_FAILURE);
    }
    spdlog::info("{}: draining", strsignal(signal));
    actions_.drain();
    draining = true;
  }
}

}  // namespace photon
