// SPDX-License-Identifier: Apache-2.0
//
// Stands in for fmt where nvcc compiles: its front end does not take fmt's compile-time checks. Error messages need no more
// than {} replaced in order. Everything has a type of its own, so that no symbol meets one of fmt's.
#pragma once

#include <sstream>
#include <string>
#include <utility>

namespace fmt {
namespace plain {

struct Text {
  const char* characters;
  Text(const char* c) : characters(c) {}  // NOLINT: a format string is a literal
};

inline void append(std::ostringstream& out, const char*& rest) { out << rest; }

template <class First, class... Others>
void append(std::ostringstream& out, const char*& rest, const First& first,
            const Others&... others) {
  while (*rest && !(rest[0] == '{' && rest[1] == '}')) out << *rest++;
  if (*rest) {
    out << first;
    rest += 2;
  }
  append(out, rest, others...);
}

}  // namespace plain

template <class...>
using format_string = plain::Text;

template <class... Args>
std::string format(plain::Text text, Args&&... args) {
  std::ostringstream out;
  plain::append(out, text.characters, args...);
  return out.str();
}

}  // namespace fmt
