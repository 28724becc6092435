// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/plan/gemm_cache.h"

#include <fmt/format.h>

#include <optional>
#include <string_view>

#include "heirloom/core/log.h"
#include "heirloom/io/file.h"

namespace heirloom::cuda {
namespace {

// The first line is the format and the hash of all that follows it.
constexpr std::string_view kFormat = "heirloom gemm algorithms, format 1, content ";
constexpr size_t kHexDigits = 8 * 16;

std::string hash_of(std::string_view text) {
  ContentHash hash;
  hash.update(text.data(), text.size());
  return hash.hex();
}

std::optional<GemmAlgorithm> parse_algorithm(std::string_view hex) {
  GemmAlgorithm words{};
  for (size_t i = 0; i < kHexDigits; ++i) {
    const char c = hex[i];
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0) return std::nullopt;
    words[i / 16] = words[i / 16] << 4 | static_cast<uint64_t>(digit);
  }
  return words;
}

// What is wrong with the file, or null.
const char* parse(std::string_view text, std::map<std::string, GemmAlgorithm>* entries) {
  const size_t line_end = text.find('\n');
  if (line_end == std::string_view::npos || !text.starts_with(kFormat)) return "another format";
  const std::string_view stated = text.substr(kFormat.size(), line_end - kFormat.size());
  text.remove_prefix(line_end + 1);
  if (stated != hash_of(text)) return "damage";
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos || end < kHexDigits + 2 || text[kHexDigits] != ' ') {
      return "damage";
    }
    const auto algorithm = parse_algorithm(text.substr(0, kHexDigits));
    if (!algorithm) return "damage";
    (*entries)[std::string(text.substr(kHexDigits + 1, end - kHexDigits - 1))] = *algorithm;
    text.remove_prefix(end + 1);
  }
  return nullptr;
}

}  // namespace

std::string GemmKey::text() const {
  return fmt::format(
      "m={} n={} k={} ta={:d} tb={:d} in={} out={} bias={:d} accumulate={:d} tf32={:d} "
      "aligned={},{},{} "
      "library={} device={}",
      m, n, k, transpose_a, transpose_b, dtype_name(input), dtype_name(output), bias, accumulate,
      tf32, a_alignment, b_alignment, c_alignment, library, device);
}

GemmCache GemmCache::read(const std::filesystem::path& path) {
  GemmCache cache;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return cache;
  std::map<std::string, GemmAlgorithm> entries;
  if (const char* wrong = parse(read_file(path), &entries)) {
    log(LogLevel::kWarning,
        fmt::format("[gemm] expected pinned algorithms in {}; got {}; ignored, they are timed anew",
                    path.string(), wrong));
    return cache;
  }
  cache.entries_ = std::move(entries);
  return cache;
}

void GemmCache::write(const std::filesystem::path& path) const {
  std::string lines;
  for (const auto& [key, words] : entries_) {
    for (const uint64_t word : words) lines += fmt::format("{:016x}", word);
    lines += " " + key + "\n";
  }
  write_file_atomically(path, fmt::format("{}{}\n{}", kFormat, hash_of(lines), lines));
}

const GemmAlgorithm* GemmCache::find(const std::string& key) const {
  const auto found = entries_.find(key);
  return found == entries_.end() ? nullptr : &found->second;
}

}  // namespace heirloom::cuda
