#include "server/trace_context.h"

#include <gtest/gtest.h>

#include <string>

namespace photon {
namespace {

TEST(TraceContext, ATraceparentNamesItsTrace) {
  EXPECT_EQ(TraceIdOf("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(TraceIdOf("42-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more"),
            "4bf92f3577b34da6a3ce929d0e0e4736");
}

TEST(TraceContext, WhatIsNotWellFormedNamesNone) {
  EXPECT_EQ(TraceIdOf(std::nullopt), "");
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
    EXPECT_EQ(TraceIdOf(header), "") << header;
  }
}

}  // namespace
}  // namespace photon
