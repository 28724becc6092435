// SPDX-License-Identifier: Apache-2.0
#include "heirloom/core/log.h"

#include <fmt/format.h>

#include <utility>

namespace heirloom {
namespace {
LogSink& sink() {
  static LogSink instance;
  return instance;
}
}  // namespace

void set_log_sink(LogSink new_sink) { sink() = std::move(new_sink); }
void log(LogLevel level, const std::string& message) {
  if (sink()) sink()(level, message);
}

std::string one_line(std::string_view message, size_t max_bytes) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(message[i]); };
  size_t head = message.size(), tail = message.size();
  if (message.size() > max_bytes) {
    head = max_bytes / 2;
    tail = message.size() - max_bytes / 2;
    while (head > 0 && (byte(head) & 0xC0) == 0x80) --head;  // between characters of UTF-8
    while (tail < message.size() && (byte(tail) & 0xC0) == 0x80) ++tail;
  }
  std::string line;
  for (size_t i = 0; i < message.size(); ++i) {
    if (i == head) {
      line += " ... ";
      i = tail;
      if (i >= message.size()) break;
    }
    if (message[i] == '\n') {
      line += "\\n";
    } else if (byte(i) < 0x20 || byte(i) == 0x7F) {
      line += fmt::format("\\x{:02x}", byte(i));
    } else {
      line += message[i];
    }
  }
  return line;
}

}  // namespace heirloom
