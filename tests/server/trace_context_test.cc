#include "server/trace_context.h"

#include <gtest/gtest.h>

#include <string>

namespace photon {
namespace {

TEST(TraceContext, ATraceparentNamesItsTrace) {
  const auto trace = TraceContext::From("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
  EXPECT_EQ(trace.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(trace.parent_id, "00f067aa0ba902b7");
  EXPECT_TRUE(trace.is_sampled);
  const auto later =
      TraceContext::From("42-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fe-more");
  EXPECT_EQ(later.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_FALSE(later.is_sampled);
}

TEST(TraceContext, WhatIsNotWellFormedNamesNone) {
  EXPECT_EQ(TraceContext::From(std::nullopt).trace_id, "");
  for (const std::string header : {
           "",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
           "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
           "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
           "00-4bf92f3577b34da6a3ce929d0e0e473--00f067aa0ba902b7-01",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
           "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
           "00 4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7 01",
       }) {
    EXPECT_EQ(TraceContext::From(header).trace_id, "") << header;
  }
}

}  // namespace
}  // namespace photon
