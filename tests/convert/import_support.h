// SPDX-License-Identifier: Apache-2.0
//
// What the importers' tests share.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "heirloom/convert/import.h"
#include "heirloom/tokenizer/tokenizer.h"

namespace heirloom::test {

using Floats = std::vector<float>;
using Texts = std::vector<std::string>;

inline Floats floats_of(const ImportedModel& model, const std::string& name) {
  const WeightSource::Entry& entry = model.weights->entries().at(name);
  std::vector<std::byte> buffer;
  const auto bytes = model.weights->read(name, buffer);
  std::vector<double> values(bytes.size() / (entry.dtype == "F32" ? 4 : 2));
  to_doubles(entry.dtype, bytes, values.data());
  return {values.begin(), values.end()};
}

/// Tokens as the imported tokenizer spells them.
inline std::vector<std::string> pieces(const ImportedModel& m, const std::string& text,
                                       bool special = false) {
  const Tokenizer t = Tokenizer::from_json(m.tokenizer_json, "test");
  std::vector<std::string> out;
  EncodeOptions options;
  options.add_special = special;
  for (const int32_t id : t.encode(text, options)) out.push_back(t.token_text(id));
  return out;
}

}  // namespace heirloom::test
