// SPDX-License-Identifier: Apache-2.0
//
// The exceptions of the library. A message reads `[what] expected ...; got ...; where; what to do`.
// The library throws, it never prints or exits; the binary turns each class into one line on stderr
// and a documented exit code.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace heirloom {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A caller passed something a function does not take: a wrong shape, dtype or range.          exit
/// 2
struct ArgumentError : Error {
  using Error::Error;
};
/// A config or a command line asks for something that does not exist or does not fit together. exit
/// 2
struct ConfigError : Error {
  using Error::Error;
};
/// A file exists but its contents are not what its format promises.                            exit
/// 3
struct FormatError : Error {
  using Error::Error;
};
/// The operating system refused: missing file, no permission, full disk.                       exit
/// 3 reading, 1 writing
struct IoError : Error {
  using Error::Error;
};
/// A valid request that this build or device has no code for.                                  exit
/// 2
struct UnsupportedError : Error {
  using Error::Error;
};
/// A run that cannot fit in memory, refused before it starts.                                  exit
/// 4
struct OutOfMemoryError : Error {
  using Error::Error;
};
/// A device or one of its libraries failed.                                                    exit
/// 1
struct DeviceError : Error {
  using Error::Error;
};
/// A defect of ours.                                                                           exit
/// 1
struct InternalError : Error {
  using Error::Error;
};

/// throw_error<ConfigError>("[train] expected {}; got {}", a, b)
template <class E, class... Args>
[[noreturn]] void throw_error(fmt::format_string<Args...> format, Args&&... args) {
  throw E(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace heirloom

/// Always on: the caller's fault. HEIRLOOM_CHECK(k > 0, "[gemm] expected k > 0; got {}", k)
#define HEIRLOOM_CHECK(condition, ...)                                                 \
  do {                                                                                 \
    if (!(condition)) ::heirloom::throw_error<::heirloom::ArgumentError>(__VA_ARGS__); \
  } while (0)

/// Always on: our own fault.
#define HEIRLOOM_ASSERT(condition)                                                               \
  do {                                                                                           \
    if (!(condition))                                                                            \
      ::heirloom::throw_error<::heirloom::InternalError>("[internal] {} does not hold at {}:{}", \
                                                         #condition, __FILE__, __LINE__);        \
  } while (0)
