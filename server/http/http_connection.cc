#include "server/http/http_connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

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
// Unsent bytes that the kernel may hold for a slow reader.
constexpr int kMaxUnsentBytes = 128 << 10;
constexpr int kKeepaliveIdleSeconds = 60;

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

// Over a socket or a TLS stream. Everything happens on the stream's strand.
template <typename Stream>
class StreamConnection final : public HttpConnection {
 public:
  StreamConnection(HttpConnections* connections, Stream stream)
      : connections_(connections),
        options_(connections->options),
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
    answer_ = connections_->handler(std::move(request), [weak, wake] {
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
    if (connections_->draining) keep_alive_ = false;
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
    if (!keep_alive_ || connections_->draining) return Linger();
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
    std::lock_guard lock(connections_->mutex);
    connections_->open.erase(this);
    connections_->removed.notify_all();
  }

  HttpConnections* const connections_;
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

std::shared_ptr<HttpConnection> MakeConnection(HttpConnections* connections, tcp::socket socket) {
  return std::make_shared<StreamConnection<tcp::socket>>(connections, std::move(socket));
}

std::shared_ptr<HttpConnection> MakeConnection(HttpConnections* connections, TlsStream stream) {
  return std::make_shared<StreamConnection<TlsStream>>(connections, std::move(stream));
}

HttpResponse RefusalOf(int status, std::string_view message) {
  HttpResponse response;
  response.head.status = status;
  response.head.headers = {{"content-type", "application/json"}};
  response.body = absl::StrCat(R"({"error":{"message":")", std::string(message),
                               R"(","type":"invalid_request_error","param":null,"code":null}})");
  return response;
}

}  // namespace photon
