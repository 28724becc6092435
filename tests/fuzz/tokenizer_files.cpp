// SPDX-License-Identifier: Apache-2.0
//
// A tokenizer in several files of one directory: merges.txt, vocab.json, tokenizer_config.json and
// added_tokens.json, one behind the other with a zero byte between (a missing one is not written).
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "heirloom/core/error.h"
#include "use_tokenizer.h"

namespace {

/// One directory of the process's own, in memory where that is possible.
struct Folder {
  std::filesystem::path path;
  Folder() {
    const std::filesystem::path shm = "/dev/shm";
    std::string name =
        ((is_directory(shm) ? shm : std::filesystem::temp_directory_path()) / "fuzz-XXXXXX")
            .string();
    if (mkdtemp(name.data()) == nullptr) __builtin_trap();
    path = name;
  }
  ~Folder() { remove_all(path); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  const std::string all(reinterpret_cast<const char*>(data), size);
  size_t at = 0;
  for (const char* name :
       {"merges.txt", "vocab.json", "tokenizer_config.json", "added_tokens.json"}) {
    std::filesystem::remove(folder.path / name);
    if (at > all.size()) continue;
    const size_t end = std::min(all.find('\0', at), all.size());
    std::ofstream(folder.path / name, std::ios::binary) << all.substr(at, end - at);
    at = end + 1;
  }
  try {
    heirloom::use_tokenizer(heirloom::Tokenizer::load(folder.path), all);
  } catch (const heirloom::Error&) {
  }
  return 0;
}
