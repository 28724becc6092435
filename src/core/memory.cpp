// SPDX-License-Identifier: Apache-2.0
#include "heirloom/core/memory.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace heirloom {
namespace {

/// The number a file starts with; -1 where there is none ("max", no such file).
int64_t read_number(const char* path) {
  std::ifstream in(path);
  int64_t n = -1;
  return in >> n ? n : -1;
}

}  // namespace

int64_t available_memory() {
  int64_t available = INT64_MAX;
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("MemAvailable:")) available = std::stoll(line.substr(13)) * 1024;
  }
  const int64_t limit = read_number("/sys/fs/cgroup/memory.max");
  const int64_t used = read_number("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) available = std::min(available, limit - used);
  return available;
}

}  // namespace heirloom
