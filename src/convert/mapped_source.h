// SPDX-License-Identifier: Apache-2.0
//
// What the importers share: weights read row by row from a mapped file, and the check of a config
// that was put together from a file's fields.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "heirloom/io/gguf.h"
#include "heirloom/model/weight_source.h"

namespace heirloom {

/// One of our tensors in a file.
struct MappedTensor {
  std::vector<int64_t> shape;  ///< ours: (rows, columns) or (rows)
  GgufType type = GgufType::kF32;
  std::span<const std::byte> data;  ///< all of the file's tensor
  /// The file's row that holds our row; empty: in order from the first. Rows of vectors are
  /// elements.
  std::function<int64_t(int64_t row)> row;
};

class MappedSource final : public WeightSource {
 public:
  /// `owner` keeps the mapped bytes alive.
  MappedSource(std::shared_ptr<const void> owner, std::string origin,
               std::map<std::string, MappedTensor> tensors);
  const std::map<std::string, Entry>& entries() const override { return entries_; }
  std::span<const std::byte> read(const std::string& name,
                                  std::vector<std::byte>& buffer) const override;
  std::string origin() const override { return origin_; }

 private:
  std::shared_ptr<const void> owner_;
  std::string origin_;
  std::map<std::string, MappedTensor> tensors_;
  std::map<std::string, Entry> entries_;
};

/// Where row `row` of our query or key projection (half-split rotation: dim i turns with i + D/2)
/// lies in a file for interleaved rotation (2i turns with 2i + 1).
inline int64_t interleaved_row(int64_t row, int64_t head_dim) {
  const int64_t head = row / head_dim, i = row % head_dim, half = head_dim / 2;
  return head * head_dim + (i < half ? 2 * i : 2 * (i - half) + 1);
}
bool is_query_or_key(const std::string& our_name);

/// The config as a model directory would give it. What its family refuses is a FormatError that
/// names `origin`.
ModelConfig checked_config(const ModelConfig& config, const std::string& origin);

}  // namespace heirloom
