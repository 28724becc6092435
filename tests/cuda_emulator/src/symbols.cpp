// SPDX-License-Identifier: Apache-2.0
//
// Names of kernels. Kernels are often static, so the dynamic symbols that dladdr knows are not
// enough: the program's own symbol table is read, once.
#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <vector>

#include "stream.h"

namespace heirloom::emulator {
namespace {

std::map<uintptr_t, std::string> read_symbols() {
  std::map<uintptr_t, std::string> names;
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  if (bytes.size() < sizeof(ElfW(Ehdr)) || std::memcmp(bytes.data(), ELFMAG, SELFMAG) != 0) {
    return names;
  }
  uintptr_t base = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        *static_cast<uintptr_t*>(out) = info->dlpi_addr;
        return 1;  // the first is the program
      },
      &base);
  const auto read = [&](size_t at, auto* value) {
    if (at + sizeof *value > bytes.size()) return false;
    std::memcpy(value, bytes.data() + at, sizeof *value);
    return true;
  };
  ElfW(Ehdr) header;
  read(0, &header);
  for (size_t i = 0; i < header.e_shnum; ++i) {
    ElfW(Shdr) section, strings;
    if (!read(header.e_shoff + i * header.e_shentsize, &section)) break;
    if (section.sh_type != SHT_SYMTAB) continue;
    if (!read(header.e_shoff + section.sh_link * header.e_shentsize, &strings)) break;
    for (size_t at = 0; at < section.sh_size; at += sizeof(ElfW(Sym))) {
      ElfW(Sym) symbol;
      if (!read(section.sh_offset + at, &symbol)) break;
      const size_t name = strings.sh_offset + symbol.st_name;
      if ((symbol.st_info & 0xf) != STT_FUNC || symbol.st_value == 0 || name >= bytes.size()) {
        continue;
      }
      names.emplace(base + symbol.st_value, std::string(bytes.data() + name));
    }
  }
  return names;
}

// "void heirloom::cuda::rows_kernel<float>(Params)" -> "rows_kernel<float>"
std::string short_name(const std::string& mangled) {
  int status = 0;
  char* text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  if (status != 0 || text == nullptr) return mangled;
  std::string name = text;
  std::free(text);
  const std::string anonymous = "(anonymous namespace)::";
  for (size_t at; (at = name.find(anonymous)) != std::string::npos;) {
    name.erase(at, anonymous.size());
  }
  int depth = 0;
  size_t begin = 0, end = name.size();
  for (size_t i = 0; i < name.size(); ++i) {
    const char c = name[i];
    if (c == '<') ++depth;
    if (c == '>') --depth;
    if (depth != 0) continue;
    if (c == '(') {
      end = i;
      break;
    }
    if (c == ' ' || (c == ':' && i > 0 && name[i - 1] == ':')) begin = i + 1;
  }
  return name.substr(begin, end - begin);
}

}  // namespace

std::string kernel_name(const void* function) {
  static const std::map<uintptr_t, std::string>* const symbols =
      new std::map<uintptr_t, std::string>(read_symbols());
  static auto* const known = new std::map<const void*, std::string>;
  const auto found = known->find(function);
  if (found != known->end()) return found->second;
  const auto symbol = symbols->find(reinterpret_cast<uintptr_t>(function));
  std::string name = "kernel";
  if (symbol != symbols->end()) name = short_name(symbol->second);
  return (*known)[function] = name;
}

}  // namespace heirloom::emulator
