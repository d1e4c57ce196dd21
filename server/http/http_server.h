// An HTTP/1.1 server: sockets, framing and limits. What is asked and answered is its handler's.
//
// A few threads carry all connections. Each connection answers one request at a time, in order;
// requests sent ahead wait in its buffer. It goes on reading while it answers, so that a client
// that leaves is noticed at once.
//
//   what comes in                       what happens
//   headers too long / too slow         431 / 408, closed
//   a body too long / too slow          413 / 408, closed
//   no HTTP/1 request                   400, closed
//   more connections than allowed       503, closed
//   nothing, for the idle timeout       closed
//   a client that takes no bytes        closed after the write timeout
#pragma once

#include <openssl/ssl.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/http/http_message.h"
#include "server/http/http_options.h"

namespace photon {

// Asked for each connection: its TLS context, which may change from one to the next.
using TlsContextProvider = std::function<std::shared_ptr<SSL_CTX>()>;

class HttpServer {
 public:
  // Listens and serves. `tls` may be null: plaintext. kInvalidArgument: `listen` is no address and
  // port. kUnavailable: it cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpOptions& options,
                                                           HttpHandler handler,
                                                           TlsContextProvider tls = nullptr);

  // Stops at once.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Where clients connect, the port that was taken included.
  const std::string& address() const { return address_; }

  // Takes no more connections if the socket is inherited, so that others share it. Any thread.
  void LeaveToOthers();

  // From now on each connection is closed after the answer that it waits for. Any thread.
  void Drain();

  // Takes no more connections; answers have `grace` to end, then all connections are closed.
  void Stop(std::chrono::milliseconds grace);

  int num_connections() const;

 private:
  class Impl;

  explicit HttpServer(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
  std::string address_;
};

}  // namespace photon
