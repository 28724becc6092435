// SPDX-License-Identifier: Apache-2.0
// Lines, JSONL and documents from plain, gzip and zstd bytes. The first byte chooses the name, the
// second the piece size. A plain text without a separator must come back byte for byte.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "heirloom/core/error.h"
#include "heirloom/data/text_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heirloom;
  if (size < 2) return 0;
  static const char* const kNames[] = {"a.txt",      "a.jsonl",   "a.txt.gz",
                                       "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst"};
  const std::string name = kNames[data[0] % 6];
  const std::string bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  TextReaderOptions options;
  options.piece_bytes = size_t{1} + data[1];
  options.max_line_bytes = size_t{1} << 16;
  if (data[0] >= 128) options.separator = "--";
  // A small input may stand for gigabytes; the limit is on this harness, not on the reader.
  constexpr size_t kEnough = size_t{1} << 22;
  try {
    TextReader reader(memory_bytes(bytes, name), name, options);
    TextPiece piece;
    std::string joined;
    while (joined.size() < kEnough && reader.next(piece)) {
      if (piece.text.empty() && !piece.document_end) std::abort();
      joined += piece.text;
    }
    if (name == "a.txt" && options.separator.empty() && joined != bytes) std::abort();
  } catch (const FormatError&) {
  }
  try {
    LineReader lines(memory_bytes(bytes, name), name, options.max_line_bytes);
    std::string_view line;
    size_t total = 0;
    while (total < kEnough && lines.next(line)) {
      if (line.size() > options.max_line_bytes || line.find('\n') != line.npos) std::abort();
      total += line.size() + 1;
    }
  } catch (const FormatError&) {
  }
  return 0;
}
