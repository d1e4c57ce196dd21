// Requests and answers of the HTTP port, free of sockets.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace photon {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;   // "GET"
  std::string path;     // percent-decoded, without the query: "/v1/models"
  HttpHeaders headers;  // names in lower case
  std::string body;

  // The first header of a name, given in lower case.
  std::optional<std::string_view> header(std::string_view name) const;
};

struct HttpHead {
  int status = 200;
  HttpHeaders headers;  // without those of the framing: length, transfer coding, connection
};

struct HttpResponse {
  HttpHead head;
  std::string body;
};

// What is to be written next. The first part that says anything carries the head; what has head and
// end is sent with its length, all else in chunks.
struct HttpPart {
  std::optional<HttpHead> head;
  std::string body;
  bool end = false;

  bool empty() const { return !head.has_value() && body.empty() && !end; }
};

// The answer to one request, pulled by its connection as fast as the client reads.
class HttpAnswer {
 public:
  virtual ~HttpAnswer() = default;

  // Called when all parts before have been written. An empty part: nothing yet; the waker that came
  // with the request calls for another try. Calls come one at a time, on the port's threads, and
  // must not block.
  virtual HttpPart Next() = 0;

  // The last call: the answer has been written, or the client has left (`complete` is false).
  virtual void OnClosed(bool complete) = 0;
};

// Tells a connection that its answer may have something to say. Any thread, at any time.
using HttpWaker = std::function<void()>;

using HttpHandler =
    std::function<std::shared_ptr<HttpAnswer>(HttpRequest request, HttpWaker waker)>;

// An answer that is there at once.
std::shared_ptr<HttpAnswer> AnswerAtOnce(HttpResponse response);

// "Not Found"; "" for codes that this server does not send.
std::string_view HttpReason(int status);

// `target` up to its query, with %XX decoded. Nothing: an escape is broken or decodes to NUL.
std::optional<std::string> DecodePath(std::string_view target);

}  // namespace photon
