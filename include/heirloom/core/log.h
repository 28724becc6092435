// SPDX-License-Identifier: Apache-2.0
//
// Talk goes to stderr, results to stdout. The library itself reports through this sink only; the
// binary sets it.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace heirloom {

enum class LogLevel { kInfo, kWarning };

using LogSink = std::function<void(LogLevel, const std::string&)>;

/// Replaces the process-wide sink; the default drops everything.
void set_log_sink(LogSink sink);
void log(LogLevel level, const std::string& message);

/// A message, which may hold names out of files, as one line for a terminal: control characters as
/// \n or \x1b, and the middle left out where it is longer than `max_bytes`.
std::string one_line(std::string_view message, size_t max_bytes = 8192);

}  // namespace heirloom
