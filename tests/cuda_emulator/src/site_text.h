// SPDX-License-Identifier: Apache-2.0
//
// Parts of the engine's messages.
#pragma once

#include <bit>
#include <cstring>
#include <string>

#include "engine.h"

namespace heirloom::emulator {

/// "norm.cu:51".
inline std::string file_line(const Site& site) {
  const char* file = site.where.file_name();
  if (const char* slash = std::strrchr(file, '/')) file = slash + 1;
  return std::string(file) + ":" + std::to_string(site.where.line());
}
inline bool same_line(const Site& a, const Site& b) {
  // Lines that the compiler has compared for us.
  static_assert(sizeof(std::source_location) == sizeof(void*));
  if (std::bit_cast<const void*>(a.where) == std::bit_cast<const void*>(b.where)) return true;
  return a.where.line() == b.where.line() && a.where.column() == b.where.column() &&
         std::strcmp(a.where.file_name(), b.where.file_name()) == 0;
}

/// "lanes 0-15,20".
inline std::string lane_list(uint32_t mask) {
  std::string text = std::popcount(mask) == 1 ? "lane " : "lanes ";
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const int first = lane;
    while (lane < 31 && (mask >> (lane + 1) & 1)) ++lane;
    if (!text.ends_with(' ')) text += ',';
    text += std::to_string(first);
    if (lane > first) text += '-' + std::to_string(lane);
  }
  return text;
}

/// Texts of errors are built in variables of their own and moved into fail(), which does not come
/// back: temporaries would never be freed.
template <class... Parts>
std::string join(const Parts&... parts) {
  std::string text;
  ((text += parts), ...);
  return text;
}

}  // namespace heirloom::emulator
