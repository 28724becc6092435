// SPDX-License-Identifier: Apache-2.0
//
// Linked into a test binary whose kernels are watched: a test fails when the emulator found
// something in a kernel that it ran. Tests that plant mistakes take the report themselves.
#include <gtest/gtest.h>

#include "tests/cuda_emulator/src/instrument.h"

namespace heirloom::emulator {
namespace {

class ReportListener : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override { take_report(); }
  void OnTestEnd(const testing::TestInfo&) override {
    const auto report = take_report();
    if (!report.empty()) ADD_FAILURE() << "found in kernels:\n" << format(report);
  }
};

// Before main: the list of listeners exists from the first use on. The printer, which is there
// already, hears of a test's end after this one.
[[maybe_unused]] const bool installed = [] {
  testing::UnitTest::GetInstance()->listeners().Append(new ReportListener);
  return true;
}();

}  // namespace
}  // namespace heirloom::emulator
