// A connection to an HttpServer, over TCP or TLS: reads requests, one after the other, and writes
// their answers. Internal to HttpServer.
#pragma once

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string_view>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "server/http/http_message.h"
#include "server/http/http_options.h"

namespace photon {

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  virtual ~HttpConnection() = default;
  virtual void Start() = 0;
  // Any thread.
  virtual void CloseIfIdle() = 0;
  virtual void Abort() = 0;
};

// Those of a server, and what they need of it.
struct HttpConnections {
  explicit HttpConnections(const HttpOptions& options) : options(options) {}

  const HttpOptions options;
  HttpHandler handler;
  std::atomic<bool> draining = false;

  mutable std::mutex mutex;
  std::condition_variable removed;
  std::unordered_map<HttpConnection*, std::weak_ptr<HttpConnection>> open ABSL_GUARDED_BY(mutex);
};

// Removes itself from `connections`, which outlive it, when it closes.
std::shared_ptr<HttpConnection> MakeConnection(HttpConnections* connections,
                                               boost::asio::ip::tcp::socket socket);
std::shared_ptr<HttpConnection> MakeConnection(
    HttpConnections* connections, boost::asio::ssl::stream<boost::asio::ip::tcp::socket> stream);

// In the shape of the completions' errors.
HttpResponse RefusalOf(int status, std::string_view message);

}  // namespace photon
