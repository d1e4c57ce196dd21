#include "server/http/http_server.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/auth/inherited_socket.h"
#include "server/http/http_connection.h"

namespace photon {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using tcp = asio::ip::tcp;
using TlsStream = asio::ssl::stream<tcp::socket>;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Until connections are accepted again when there are no more descriptors.
constexpr milliseconds kAcceptRetryInterval{100};

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const HttpOptions& options, HttpHandler handler, TlsContextProvider tls)
      : connections_(options), tls_(std::move(tls)), work_(asio::make_work_guard(io_)) {
    connections_.handler = std::move(handler);
  }

  ~Impl() { Stop(milliseconds(0)); }

  absl::StatusOr<std::string> Listen() {
    const std::string& listen = connections_.options.listen;
    if (IsInherited(listen)) {
      absl::StatusOr<std::string> address = ListenOnInherited();
      if (address.ok()) Run();
      return address;
    }
    const size_t colon = listen.rfind(':');
    if (colon == std::string::npos || colon == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("http.listen: expected ADDRESS:PORT, got ", listen));
    }
    std::string host = listen.substr(0, colon);
    const std::string port = listen.substr(colon + 1);
    if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
      host = host.substr(1, host.size() - 2);
    }
    tcp::resolver resolver(io_);
    error_code error;
    const auto endpoints = resolver.resolve(
        host, port, tcp::resolver::passive | tcp::resolver::numeric_service, error);
    if (!error) error = asio::error::host_not_found;
    for (const auto& entry : endpoints) {
      error = Bind(entry.endpoint());
      if (!error) break;
    }
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("http.listen: cannot bind ", listen, ": ", error.message()));
    }
    const int taken = acceptor_.local_endpoint().port();
    Run();
    return absl::StrCat(listen.substr(0, colon), ":", taken);
  }

  void LeaveToOthers() {
    if (!IsInherited(connections_.options.listen)) return;
    asio::post(acceptor_.get_executor(), [this] { CloseAcceptor(); });
  }

  void Drain() {
    connections_.draining = true;
    for (const auto& connection : Connections()) connection->CloseIfIdle();
  }

  void Stop(milliseconds grace) {
    if (std::exchange(stopped_, true)) return;
    asio::post(acceptor_.get_executor(), [this] { CloseAcceptor(); });
    Drain();
    const auto deadline = steady_clock::now() + grace;
    {
      std::unique_lock lock(connections_.mutex);
      connections_.removed.wait_until(lock, deadline, [&] { return connections_.open.empty(); });
    }
    aborting_ = true;
    for (const auto& connection : Connections()) connection->Abort();
    // Ends when the last handler has run.
    work_.reset();
    for (std::thread& thread : threads_) thread.join();
  }

  int num_connections() const {
    std::lock_guard lock(connections_.mutex);
    return static_cast<int>(connections_.open.size());
  }

 private:
  absl::StatusOr<std::string> ListenOnInherited() {
    const absl::StatusOr<int> fd = OpenInherited(connections_.options.listen);
    if (!fd.ok()) return fd.status();
    const std::string address = AddressOf(*fd);
    if (address.starts_with("unix:")) {
      close(*fd);
      return absl::InvalidArgumentError(
          absl::StrCat("http.listen: expected a TCP socket, got ", address));
    }
    acceptor_.assign(address.starts_with("[") ? tcp::v6() : tcp::v4(), *fd);
    return address;
  }

  void Run() {
    for (int i = 0; i < connections_.options.threads; ++i) {
      threads_.emplace_back([this] { io_.run(); });
    }
    asio::post(acceptor_.get_executor(), [this] { Accept(); });
  }

  void CloseAcceptor() {
    error_code ignored;
    acceptor_.close(ignored);
    retry_.cancel();
  }

  error_code Bind(const tcp::endpoint& endpoint) {
    error_code error;
    acceptor_.close(error);
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    return error;
  }

  void Accept() {
    acceptor_.async_accept(asio::make_strand(io_),
                           [this](const error_code& error, tcp::socket socket) {
                             if (!acceptor_.is_open()) return;
                             if (error) return RetryAccept();
                             Take(std::move(socket));
                             Accept();
                           });
  }

  // No descriptors are left, or a client left before it was accepted.
  void RetryAccept() {
    retry_.expires_after(kAcceptRetryInterval);
    retry_.async_wait([this](const error_code& error) {
      if (!error && acceptor_.is_open()) Accept();
    });
  }

  void Take(tcp::socket socket) {
    if (num_connections() >= connections_.options.max_connections) return TurnAway(socket);
    if (tls_ == nullptr) return Add(MakeConnection(&connections_, std::move(socket)));
    const std::shared_ptr<SSL_CTX> tls = tls_();
    if (tls == nullptr) return;
    SSL_CTX_up_ref(tls.get());
    asio::ssl::context context(tls.get());  // takes a reference of its own
    Add(MakeConnection(&connections_, TlsStream(std::move(socket), context)));
  }

  void Add(const std::shared_ptr<HttpConnection>& connection) {
    {
      std::lock_guard lock(connections_.mutex);
      connections_.open[connection.get()] = connection;
    }
    connection->Start();
    // It was not there when those that were got told.
    if (aborting_) connection->Abort();
  }

  // As far as that goes without waiting.
  void TurnAway(tcp::socket& socket) {
    if (tls_ != nullptr) return;
    const HttpResponse refusal = RefusalOf(503, "the server has all the connections that it takes");
    const std::string text =
        absl::StrCat("HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n",
                     "retry-after: 1\r\nconnection: close\r\ncontent-length: ", refusal.body.size(),
                     "\r\n\r\n", refusal.body);
    error_code ignored;
    socket.non_blocking(true, ignored);
    socket.write_some(asio::buffer(text), ignored);
    socket.shutdown(tcp::socket::shutdown_send, ignored);
    std::array<char, 4096> unread;
    socket.read_some(asio::buffer(unread), ignored);
  }

  std::vector<std::shared_ptr<HttpConnection>> Connections() const {
    std::vector<std::shared_ptr<HttpConnection>> connections;
    std::lock_guard lock(connections_.mutex);
    for (const auto& [key, weak] : connections_.open) {
      if (auto connection = weak.lock()) connections.push_back(std::move(connection));
    }
    return connections;
  }

  HttpConnections connections_;
  const TlsContextProvider tls_;
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  tcp::acceptor acceptor_{asio::make_strand(io_)};
  asio::steady_timer retry_{acceptor_.get_executor()};
  std::vector<std::thread> threads_;
  std::atomic<bool> aborting_ = false;
  bool stopped_ = false;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpOptions& options,
                                                              HttpHandler handler,
                                                              TlsContextProvider tls) {
  std::unique_ptr<HttpServer> server(
      new HttpServer(std::make_unique<Impl>(options, std::move(handler), std::move(tls))));
  absl::StatusOr<std::string> address = server->impl_->Listen();
  if (!address.ok()) return address.status();
  server->address_ = *std::move(address);
  return server;
}

void HttpServer::LeaveToOthers() {
  impl_->LeaveToOthers();
}

void HttpServer::Drain() {
  impl_->Drain();
}

void HttpServer::Stop(std::chrono::milliseconds grace) {
  impl_->Stop(grace);
}

int HttpServer::num_connections() const {
  return impl_->num_connections();
}

}  // namespace photon
