// SPDX-License-Identifier: Apache-2.0
//
// Runs the `heirloom` binary that HEIRLOOM_BINARY names.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "heirloom/io/json.h"
#include "io/temporary_directory.h"

namespace heirloom::test {

struct BinaryResult {
  int code = -1;  ///< exit code, or 128 + signal
  std::string out, err;
};

inline std::string read_all(const std::filesystem::path& path) {
  std::string text;
  if (FILE* f = std::fopen(path.c_str(), "rb")) {
    char buffer[4096];
    for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, f)) > 0;) text.append(buffer, n);
    std::fclose(f);
  }
  return text;
}

/// `heirloom arguments...`, to its end.
inline BinaryResult run_binary(std::vector<std::string> arguments) {
  const TemporaryDirectory folder;
  const std::string out = folder / "out", err = folder / "err";
  arguments.insert(arguments.begin(), std::getenv("HEIRLOOM_BINARY"));
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  argv.push_back(nullptr);
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    if (std::freopen(out.c_str(), "wb", stdout) == nullptr) ::_exit(126);
    if (std::freopen(err.c_str(), "wb", stderr) == nullptr) ::_exit(126);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  BinaryResult result;
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = read_all(out);
  result.err = read_all(err);
  return result;
}

/// Skips where there is no binary to run.
class BinaryTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* binary = std::getenv("HEIRLOOM_BINARY");
    if (binary == nullptr || ::access(binary, X_OK) != 0) {
      GTEST_SKIP() << "the command line is not tested: HEIRLOOM_BINARY names no executable";
    }
  }

  /// Exit `code`, nothing on stdout, and one line on stderr that holds every one of `parts`.
  static void expect_error(const BinaryResult& r, int code, const std::vector<std::string>& parts) {
    EXPECT_EQ(r.code, code) << r.err;
    EXPECT_EQ(r.out, "");
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
    for (const std::string& part : parts) {
      EXPECT_NE(r.err.find(part), std::string::npos) << "\"" << part << "\" in " << r.err;
    }
  }
};

}  // namespace heirloom::test
