// SPDX-License-Identifier: Apache-2.0
#include "heirloom/core/log.h"

#include <gtest/gtest.h>

#include <string>

namespace heirloom {
namespace {

TEST(Log, OneLineOfAnything) {
  EXPECT_EQ(one_line("plain \xC3\xA4"), "plain \xC3\xA4");
  EXPECT_EQ(one_line("a\nb\x1b[31m\t\x7f"), "a\\nb\\x1b[31m\\x09\\x7f");
  EXPECT_EQ(one_line(""), "");
  EXPECT_EQ(one_line("12345678", 8), "12345678");
  EXPECT_EQ(one_line("123456789", 8), "1234 ... 6789");
  // Between characters, not within them.
  EXPECT_EQ(one_line("123\xC3\xA4 middle \xC3\xA4"
                     "789",
                     8),
            "123 ... 789");
  EXPECT_LT(one_line(std::string(1 << 20, 'x')).size(), 9000u);
}

}  // namespace
}  // namespace heirloom
