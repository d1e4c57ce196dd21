#include "scheduler/sequence.h"

namespace photon {

std::string_view SequenceEndName(SequenceEnd end) {
  switch (end) {
    case SequenceEnd::kListener:
      return "listener";
    case SequenceEnd::kStopToken:
      return "stop_token";
    case SequenceEnd::kLength:
      return "length";
    case SequenceEnd::kDeadline:
      return "deadline";
    case SequenceEnd::kCancelled:
      return "cancelled";
    case SequenceEnd::kStalled:
      return "stalled";
    case SequenceEnd::kDrained:
      return "drained";
    case SequenceEnd::kEngineFailed:
      return "engine_failed";
  }
  return "unknown";
}

}  // namespace photon
