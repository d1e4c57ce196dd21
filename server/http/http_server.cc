#include "server/http/http_server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
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
#include <boost/asio/write.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/auth/inherited_socket.h"

namespace photon {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using tcp = asio::ip::tcp;
using TlsStream = asio::ssl::stream<tcp::socket>;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// How long a closing connection waits for its client to close first: what the client still sends
// would otherwise make the kernel throw away the last answer.
constexpr milliseconds kLingerTimeout{2'000};
// Until connections are accepted again when there are no more descriptors.
constexpr milliseconds kAcceptRetryInterval{100};
// Unsent bytes that the kernel may hold for a slow reader.
constexpr int kMaxUnsentBytes = 128 << 10;
constexpr int kKeepaliveIdleSeconds = 60;

// In the shape of the completions' errors.
HttpResponse RefusalOf(int status, std::string_view message) {
  HttpResponse response;
  response.head.status = status;
  response.head.headers = {{"content-type", "application/json"}};
  response.body = absl::StrCat(R"({"error":{"message":")", std::string(message),
                               R"(","type":"invalid_request_error","param":null,"code":null}})");
  return response;
}

void SetSocketOptions(tcp::socket& socket) {
  error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  socket.set_option(asio::socket_base::keep_alive(true), ignored);
  const auto set = [&](int option, int value) {
    ::setsockopt(socket.native_handle(), IPPROTO_TCP, option, &value, sizeof(value));
  };
  set(TCP_KEEPIDLE, kKeepaliveIdleSeconds);
  set(TCP_KEEPINTVL, kKeepaliveIdleSeconds / 4);
  set(TCP_KEEPCNT, 4);
  set(TCP_NOTSENT_LOWAT, kMaxUnsentBytes);
}

class Connection;

// What connections need of their server.
struct Shared {
  explicit Shared(const HttpOptions& options) : options(options) {}

  const HttpOptions options;
  HttpHandler handler;
  TlsContextProvider tls;
  std::atomic<bool> draining = false;

  mutable std::mutex mutex;
  std::condition_variable removed;
  std::unordered_map<Connection*, std::weak_ptr<Connection>> connections ABSL_GUARDED_BY(mutex);
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  virtual ~Connection() = default;
  virtual void Start() = 0;
  // Any thread.
  virtual void CloseIfIdle() = 0;
  virtual void Abort() = 0;
};

// Over a socket or a TLS stream. Everything happens on the stream's strand.
template <typename Stream>
class StreamConnection final : public Connection {
 public:
  StreamConnection(Shared* shared, Stream stream)
      : shared_(shared),
        options_(shared->options),
        stream_(std::move(stream)),
        timer_(stream_.get_executor()) {}

  void Start() override {
    asio::post(stream_.get_executor(), [self = Self()] {
      SetSocketOptions(self->socket());
      self->SetDeadline(self->options_.header_timeout);
      self->Begin();
    });
  }

  void CloseIfIdle() override {
    asio::post(stream_.get_executor(), [self = Self()] {
      if (self->state_ == State::kIdle) self->Close();
    });
  }

  void Abort() override {
    asio::post(stream_.get_executor(), [self = Self()] { self->Close(); });
  }

 private:
  static constexpr bool kIsTls = std::is_same_v<Stream, TlsStream>;

  enum class State {
    kIdle,    // nothing of a request has come
    kHeader,  // a part of its headers has
    kBody,
    kAnswering,
    kLingering,  // all is written; waiting for the client to close
    kClosed,
  };

  std::shared_ptr<StreamConnection> Self() {
    return std::static_pointer_cast<StreamConnection>(shared_from_this());
  }

  tcp::socket& socket() {
    if constexpr (kIsTls) {
      return stream_.next_layer();
    } else {
      return stream_;
    }
  }

  void Begin() {
    if constexpr (kIsTls) {
      stream_.async_handshake(asio::ssl::stream_base::server,
                              [self = Self()](const error_code& error) {
                                if (self->state_ == State::kClosed) return;
                                if (error) return self->Close();
                                self->SetDeadline(self->options_.header_timeout);
                                self->Read();
                              });
    } else {
      Read();
    }
  }

  // --- Time ---

  void SetDeadline(milliseconds duration) {
    deadline_ = steady_clock::now() + duration;
    timer_.expires_at(*deadline_);
    timer_.async_wait([self = Self()](const error_code& error) {
      if (error || !self->deadline_.has_value() || steady_clock::now() < *self->deadline_) return;
      self->OnDeadline();
    });
  }

  void ClearDeadline() {
    deadline_.reset();
    timer_.cancel();
  }

  void OnDeadline() {
    ClearDeadline();
    if (state_ == State::kHeader) return Refuse(408, "the headers took too long");
    if (state_ == State::kBody) return Refuse(408, "the body took too long");
    Close();
  }

  // --- In ---

  void Read() {
    if (reading_ || state_ == State::kClosed) return;
    // Enough has been sent ahead.
    if (state_ == State::kAnswering && pending_.size() >= incoming_.size()) return;
    reading_ = true;
    stream_.async_read_some(
        asio::buffer(incoming_),
        [self = Self()](const error_code& error, size_t bytes) { self->OnRead(error, bytes); });
  }

  void OnRead(const error_code& error, size_t bytes) {
    reading_ = false;
    if (state_ == State::kClosed) return;
    if (state_ == State::kLingering) {
      if constexpr (kIsTls) return ShutDownTls();
      return error ? Close() : Read();
    }
    if (error) return Close();
    pending_.append(incoming_.data(), bytes);
    if (state_ == State::kAnswering) return Read();
    Parse();
  }

  void Parse() {
    if (pending_.empty()) return Read();
    if (state_ == State::kIdle) {
      state_ = State::kHeader;
      SetDeadline(options_.header_timeout);
      parser_.emplace();
      parser_->header_limit(static_cast<uint32_t>(options_.max_header_bytes));
      parser_->body_limit(static_cast<uint64_t>(options_.max_body_bytes));
      parser_->eager(true);
    }
    error_code error;
    const size_t used = parser_->put(asio::buffer(pending_), error);
    pending_.erase(0, used);
    if (error && error != http::error::need_more) return RefuseBecause(error);
    // The parser counts what it has not consumed yet only when more comes.
    if (state_ == State::kHeader && !parser_->is_header_done() &&
        pending_.size() > static_cast<size_t>(options_.max_header_bytes)) {
      return RefuseBecause(http::error::header_limit);
    }
    if (state_ == State::kHeader && parser_->is_header_done()) {
      state_ = State::kBody;
      SetDeadline(options_.body_timeout);
      const auto expect = parser_->get()[http::field::expect];
      if (!parser_->is_done() && boost::beast::iequals(expect, "100-continue")) {
        return WriteContinue();
      }
    }
    if (parser_->is_done()) return Dispatch();
    Read();
  }

  void WriteContinue() {
    static constexpr char kContinue[] = "HTTP/1.1 100 Continue\r\n\r\n";
    writing_ = true;
    asio::async_write(stream_, asio::buffer(kContinue, sizeof(kContinue) - 1),
                      [self = Self()](const error_code& error, size_t) {
                        self->writing_ = false;
                        if (self->state_ == State::kClosed) return;
                        if (error) return self->Close();
                        // The deadline may have passed meanwhile.
                        if (self->state_ == State::kAnswering) return self->Pump();
                        self->Parse();
                      });
  }

  void RefuseBecause(const error_code& error) {
    if (error == http::error::header_limit) return Refuse(431, "the headers are too long");
    if (error == http::error::body_limit) return Refuse(413, "the body is too long");
    if (error == http::error::bad_version) return Refuse(505, "expected HTTP/1.0 or HTTP/1.1");
    Refuse(400, "this is not a valid HTTP/1.1 request");
  }

  void Refuse(int status, std::string_view message) {
    state_ = State::kAnswering;
    ClearDeadline();
    keep_alive_ = false;
    chunks_allowed_ = true;
    head_only_ = false;
    answer_ = AnswerAtOnce(RefusalOf(status, message));
    parser_.reset();
    Pump();
  }

  void Dispatch() {
    auto& message = parser_->get();
    chunks_allowed_ = message.version() >= 11;
    keep_alive_ = message.keep_alive();
    HttpRequest request;
    request.method = std::string(message.method_string());
    head_only_ = request.method == "HEAD";
    const auto target = message.target();
    std::optional<std::string> path = DecodePath({target.data(), target.size()});
    if (!path.has_value() || path->empty() || path->front() != '/') {
      return Refuse(400, "the request target is not a path");
    }
    if (chunks_allowed_ && message.count(http::field::host) != 1) {
      return Refuse(400, "expected one Host header");
    }
    request.path = *std::move(path);
    for (const auto& field : message) {
      std::string name(field.name_string());
      absl::AsciiStrToLower(&name);
      request.headers.emplace_back(std::move(name), std::string(field.value()));
    }
    request.body = std::move(message.body());
    parser_.reset();

    state_ = State::kAnswering;
    ClearDeadline();
    auto wake = std::make_shared<std::atomic<bool>>(false);  // a wake is on its way
    std::weak_ptr<StreamConnection> weak = Self();
    answer_ = shared_->handler(std::move(request), [weak, wake] {
      const std::shared_ptr<StreamConnection> self = weak.lock();
      if (self == nullptr || wake->exchange(true)) return;
      asio::post(self->stream_.get_executor(), [self, wake] {
        *wake = false;
        self->Pump();
      });
    });
    Read();
    Pump();
  }

  // --- Out ---

  void Pump() {
    if (writing_ || state_ != State::kAnswering) return;
    HttpPart part = answer_->Next();
    if (part.empty()) return;
    out_.clear();
    if (part.head.has_value()) AppendHead(part);
    if (head_only_) {
      last_ = true;
    } else {
      AppendBody(part);
      last_ = part.end;
    }
    writing_ = true;
    SetDeadline(options_.write_timeout);
    asio::async_write(
        stream_, asio::buffer(out_),
        [this](const error_code& error, size_t written) -> size_t {
          if (error) return 0;
          if (written > 0) SetDeadline(options_.write_timeout);
          return kMaxUnsentBytes;
        },
        [self = Self()](const error_code& error, size_t) { self->OnWritten(error); });
  }

  void AppendHead(const HttpPart& part) {
    if (shared_->draining) keep_alive_ = false;
    chunked_ = !part.end && chunks_allowed_;
    if (!part.end && !chunks_allowed_) keep_alive_ = false;  // the end of the body is that of all
    absl::StrAppend(&out_, "HTTP/1.1 ", part.head->status, " ",
                    std::string(HttpReason(part.head->status)), "\r\n");
    for (const auto& [name, value] : part.head->headers) {
      absl::StrAppend(&out_, name, ": ", value, "\r\n");
    }
    if (part.end) {
      absl::StrAppend(&out_, "content-length: ", part.body.size(), "\r\n");
    } else if (chunked_) {
      out_ += "transfer-encoding: chunked\r\n";
    }
    out_ += keep_alive_ ? "connection: keep-alive\r\n\r\n" : "connection: close\r\n\r\n";
  }

  void AppendBody(const HttpPart& part) {
    if (!chunked_) {
      out_ += part.body;
      return;
    }
    if (!part.body.empty()) {
      absl::StrAppend(&out_, absl::Hex(part.body.size()), "\r\n", part.body, "\r\n");
    }
    if (part.end) out_ += "0\r\n\r\n";
  }

  void OnWritten(const error_code& error) {
    writing_ = false;
    if (state_ == State::kClosed) return;
    if (error) return Close();
    ClearDeadline();
    if (!last_) return Pump();
    last_ = false;
    chunked_ = false;
    std::exchange(answer_, nullptr)->OnClosed(true);
    if (!keep_alive_ || shared_->draining) return Linger();
    state_ = State::kIdle;
    SetDeadline(options_.idle_timeout);
    if (!reading_) return Parse();
    // What was sent ahead is parsed at once; the rest when it comes.
    if (!pending_.empty()) Parse();
  }

  void Linger() {
    state_ = State::kLingering;
    SetDeadline(kLingerTimeout);
    error_code ignored;
    if constexpr (kIsTls) {
      // TLS is shut down once no read is under way.
      if (!reading_) return ShutDownTls();
      socket().cancel(ignored);
    } else {
      socket().shutdown(tcp::socket::shutdown_send, ignored);
      Read();
    }
  }

  void ShutDownTls() {
    if constexpr (kIsTls) {
      stream_.async_shutdown([self = Self()](const error_code&) { self->Close(); });
    }
  }

  void Close() {
    if (std::exchange(state_, State::kClosed) == State::kClosed) return;
    ClearDeadline();
    error_code ignored;
    socket().close(ignored);
    if (answer_ != nullptr) std::exchange(answer_, nullptr)->OnClosed(false);
    std::lock_guard lock(shared_->mutex);
    shared_->connections.erase(this);
    shared_->removed.notify_all();
  }

  Shared* const shared_;
  const HttpOptions& options_;
  Stream stream_;
  asio::steady_timer timer_;
  std::optional<steady_clock::time_point> deadline_;

  State state_ = State::kIdle;
  bool reading_ = false;
  std::array<char, 4096> incoming_;
  std::string pending_;  // received and not parsed
  std::optional<http::request_parser<http::string_body>> parser_;

  // The answer under way.
  std::shared_ptr<HttpAnswer> answer_;
  bool keep_alive_ = false;
  bool chunks_allowed_ = true;  // HTTP/1.1
  bool head_only_ = false;
  bool chunked_ = false;
  bool writing_ = false;
  bool last_ = false;  // what is being written ends the answer
  std::string out_;
};

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const HttpOptions& options, HttpHandler handler, TlsContextProvider tls)
      : shared_(options), work_(asio::make_work_guard(io_)) {
    shared_.handler = std::move(handler);
    shared_.tls = std::move(tls);
  }

  ~Impl() { Stop(milliseconds(0)); }

  absl::StatusOr<std::string> Listen() {
    const std::string& listen = shared_.options.listen;
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
    if (!IsInherited(shared_.options.listen)) return;
    asio::post(acceptor_.get_executor(), [this] { CloseAcceptor(); });
  }

  void Drain() {
    shared_.draining = true;
    for (const auto& connection : Connections()) connection->CloseIfIdle();
  }

  void Stop(milliseconds grace) {
    if (std::exchange(stopped_, true)) return;
    asio::post(acceptor_.get_executor(), [this] { CloseAcceptor(); });
    Drain();
    const auto deadline = steady_clock::now() + grace;
    {
      std::unique_lock lock(shared_.mutex);
      shared_.removed.wait_until(lock, deadline, [&] { return shared_.connections.empty(); });
    }
    aborting_ = true;
    for (const auto& connection : Connections()) connection->Abort();
    // Ends when the last handler has run.
    work_.reset();
    for (std::thread& thread : threads_) thread.join();
  }

  int num_connections() const {
    std::lock_guard lock(shared_.mutex);
    return static_cast<int>(shared_.connections.size());
  }

 private:
  absl::StatusOr<std::string> ListenOnInherited() {
    const absl::StatusOr<int> fd = OpenInherited(shared_.options.listen);
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
    for (int i = 0; i < shared_.options.threads; ++i) {
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
    if (num_connections() >= shared_.options.max_connections) return TurnAway(socket);
    if (shared_.tls == nullptr) return Add<tcp::socket>(std::move(socket));
    const std::shared_ptr<SSL_CTX> tls = shared_.tls();
    if (tls == nullptr) return;
    SSL_CTX_up_ref(tls.get());
    asio::ssl::context context(tls.get());  // takes a reference of its own
    Add<TlsStream>(TlsStream(std::move(socket), context));
  }

  template <typename Stream>
  void Add(Stream stream) {
    auto connection = std::make_shared<StreamConnection<Stream>>(&shared_, std::move(stream));
    {
      std::lock_guard lock(shared_.mutex);
      shared_.connections[connection.get()] = connection;
    }
    connection->Start();
    // It was not there when those that were got told.
    if (aborting_) connection->Abort();
  }

  // As far as that goes without waiting.
  void TurnAway(tcp::socket& socket) {
    if (shared_.tls != nullptr) return;
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

  std::vector<std::shared_ptr<Connection>> Connections() const {
    std::vector<std::shared_ptr<Connection>> connections;
    std::lock_guard lock(shared_.mutex);
    for (const auto& [key, weak] : shared_.connections) {
      if (auto connection = weak.lock()) connections.push_back(std::move(connection));
    }
    return connections;
  }

  Shared shared_;
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
