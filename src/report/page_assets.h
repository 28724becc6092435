// SPDX-License-Identifier: Apache-2.0
//
// The style and the script of the HTML report.
#pragma once

#include <string_view>

namespace heirloom::report {

extern const std::string_view kPageStyle;
/// Reads the JSON of #chart-data (see render_chart) and shows, at the pointer, each curve's value
/// at the nearest step.
extern const std::string_view kPageScript;

inline constexpr int kColours = 8;  ///< classes s0..s7 (lines), d0..d7 (dots), b0..b7 (legend)

}  // namespace heirloom::report
