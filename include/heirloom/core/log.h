// SPDX-License-Identifier: Apache-2.0
//
// Talk goes to stderr, results to stdout. The library itself reports through this sink only; the
// binary sets it.
#pragma once

#include <functional>
#include <string>

namespace heirloom {

enum class LogLevel { kInfo, kWarning };

using LogSink = std::function<void(LogLevel, const std::string&)>;

/// Replaces the process-wide sink; the default drops everything.
void set_log_sink(LogSink sink);
void log(LogLevel level, const std::string& message);

}  // namespace heirloom
