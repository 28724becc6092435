// SPDX-License-Identifier: Apache-2.0
//
// Lines of code addresses, from the debug information that addr2line reads. Only errors and reports
// ask.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "engine.h"

namespace heirloom::emulator {
namespace {

std::string ask(const void* pc) {
  char text[1200];
  std::snprintf(text, sizeof text, "%p", pc);
  std::string result = text;
  Dl_info info{};
  if (dladdr(pc, &info) == 0 || info.dli_fname == nullptr) return result;
  // The byte before a return address lies in the call.
  const auto offset =
      reinterpret_cast<uintptr_t>(pc) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  std::snprintf(text, sizeof text, "addr2line -i -s -e '%s' 0x%zx 2>/dev/null",
                std::strchr(info.dli_fname, '/') ? info.dli_fname : "/proc/self/exe",
                static_cast<size_t>(offset));
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(text, "r"), pclose);
  // The emulator's own inline wrappers come first, what inlines them next.
  std::string lines;
  while (pipe && std::fgets(text, sizeof text, pipe.get())) {
    if (text[0] == '?') break;
    text[std::strcspn(text, " \n")] = 0;
    if (std::strncmp(text, "device.h:", 9) == 0 || std::strncmp(text, "ptx.cuh:", 8) == 0) continue;
    if (!lines.empty()) lines += " in ";
    lines += text;
  }
  return lines.empty() ? result : lines;
}

}  // namespace

std::string source_line(const void* pc) {
  static std::mutex mutex;
  static std::map<const void*, std::string> known;
  const std::lock_guard lock(mutex);
  const auto [it, fresh] = known.try_emplace(pc);
  if (fresh) it->second = ask(pc);
  return it->second;
}

}  // namespace heirloom::emulator
