// SPDX-License-Identifier: Apache-2.0
#include "source_lines.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

namespace heirloom::emulator {
namespace {

uintptr_t program_base() {
  uintptr_t base = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        *static_cast<uintptr_t*>(out) = info->dlpi_addr;
        return 1;  // the first is the program
      },
      &base);
  return base;
}

bool is_plumbing(const std::string& line) {
  for (const char* part : {"kernels/cuda/common/", "cuda_emulator/include/", "cuda_emulator/src/",
                           "include/heirloom/core/", "/include/c++/"}) {
    if (line.find(part) != std::string::npos) return true;
  }
  return line.empty() || line[0] == '?';
}

// "/a/b/../c.cu:12 (discriminator 3)" -> "c.cu:12", relative to the tree.
std::string tidy(std::string line) {
  if (const size_t at = line.find(" ("); at != std::string::npos) line.resize(at);
  for (size_t at; (at = line.find("/../")) != std::string::npos;) {
    const size_t before = at == 0 ? std::string::npos : line.rfind('/', at - 1);
    if (before == std::string::npos) break;
    line.erase(before, at + 3 - before);
  }
  for (const char* part : {"kernels/cuda/", "tests/cuda_emulator/", "include/heirloom/"}) {
    if (const size_t at = line.rfind(part); at != std::string::npos) return line.substr(at);
  }
  return line;
}

struct Function {
  uintptr_t begin, end;
};

bool is_library_name(const char* name) {
  for (const char* prefix : {"_ZNSt", "_ZNKSt", "_ZSt", "_ZN9__gnu_cxx", "_ZNK9__gnu_cxx",
                             "_ZN3fmt", "_ZNK3fmt", "_ZN7testing", "_ZNK7testing"}) {
    if (std::strncmp(name, prefix, std::strlen(prefix)) == 0) return true;
  }
  return false;
}

// The program's functions with such names, in the order of addresses.
std::vector<Function> library_functions() {
  std::vector<Function> functions;
  const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (file < 0 || fstat(file, &status) != 0) return functions;
  const auto bytes = static_cast<size_t>(status.st_size);
  void* map = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (map == MAP_FAILED) return functions;
  const auto* data = static_cast<const unsigned char*>(map);
  const uintptr_t base = program_base();
  const auto& header = *reinterpret_cast<const ElfW(Ehdr)*>(data);
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(data + header.e_shoff);
  for (size_t i = 0; i < header.e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(data + sections[i].sh_offset);
    const char* names =
        reinterpret_cast<const char*>(data + sections[sections[i].sh_link].sh_offset);
    for (size_t s = 0; s < sections[i].sh_size / sizeof(ElfW(Sym)); ++s) {
      if ((symbols[s].st_info & 0xf) != STT_FUNC || symbols[s].st_size == 0) continue;
      if (!is_library_name(names + symbols[s].st_name)) continue;
      const uintptr_t begin = base + symbols[s].st_value;
      functions.push_back({begin, begin + symbols[s].st_size});
    }
  }
  munmap(map, bytes);
  std::sort(functions.begin(), functions.end(),
            [](const Function& a, const Function& b) { return a.begin < b.begin; });
  return functions;
}

}  // namespace

bool in_library_template(uintptr_t pc) {
  static const auto* const functions = new std::vector<Function>(library_functions());
  const auto next = std::lower_bound(functions->begin(), functions->end(), pc,
                                     [](const Function& f, uintptr_t at) { return f.begin < at; });
  return next != functions->begin() && pc <= std::prev(next)->end;
}

std::vector<std::string> source_lines(const std::vector<uintptr_t>& pcs) {
  static auto* const known = new std::map<uintptr_t, std::string>;
  std::vector<uintptr_t> unknown;
  for (const uintptr_t pc : pcs) {
    if (known->emplace(pc, "").second) unknown.push_back(pc);
  }
  if (!unknown.empty()) {
    char program[4096];
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    program[length > 0 ? length : 0] = 0;
    char list[] = "/tmp/heirloom-pcs-XXXXXX";
    const int file = mkstemp(list);
    const uintptr_t base = program_base();
    std::string addresses;
    for (const uintptr_t pc : unknown) {
      char text[32];
      std::snprintf(text, sizeof text, "0x%zx\n", pc - base - 1);  // inside the call
      addresses += text;
    }
    if (file >= 0 &&
        write(file, addresses.data(), addresses.size()) == static_cast<ssize_t>(addresses.size())) {
      const std::string command =
          std::string("addr2line -a -i -e '") + program + "' < " + list + " 2>/dev/null";
      if (FILE* pipe = popen(command.c_str(), "r")) {
        char text[4096];
        size_t next = 0;
        std::string* current = nullptr;
        std::string innermost;
        bool whole = false;  // up to the kernel's own file
        const auto finish = [&] {
          if (current != nullptr && current->empty()) *current = innermost;
        };
        while (std::fgets(text, sizeof text, pipe)) {
          text[std::strcspn(text, "\n")] = 0;
          if (std::strncmp(text, "0x", 2) == 0) {
            finish();
            innermost.clear();
            whole = false;
            current = next < unknown.size() ? &(*known)[unknown[next++]] : nullptr;
            continue;
          }
          const std::string line = tidy(text);
          if (innermost.empty()) innermost = line;
          if (current == nullptr || whole || is_plumbing(line)) continue;
          if (!current->empty()) *current += " in ";
          *current += line;
          whole = line.find(".cuh:") == std::string::npos;
        }
        finish();
        pclose(pipe);
      }
    }
    if (file >= 0) {
      close(file);
      unlink(list);
    }
  }
  std::vector<std::string> lines;
  for (const uintptr_t pc : pcs) {
    std::string line = (*known)[pc];
    if (line.empty()) {
      char text[32];
      std::snprintf(text, sizeof text, "0x%zx", pc);
      line = text;
    }
    lines.push_back(line);
  }
  return lines;
}

}  // namespace heirloom::emulator
