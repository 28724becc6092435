// SPDX-License-Identifier: Apache-2.0
#include "heirloom/train/trainer.h"

namespace heirloom {

NamedTable parameter_table(const ModelConfig& config) {
  const ParameterCount count = count_parameters(config);
  NamedTable table{"Parameters", {"kind", "parameters", "share"}, {}, ""};
  const auto row = [&](const char* kind, int64_t n) {
    if (n == 0) return;
    table.rows.push_back({kind, fmt::format("{}", n),
                          fmt::format("{:.1f}%", 100.0 * static_cast<double>(n) /
                                                     static_cast<double>(count.total()))});
  };
  row("embedding", count.embedding);
  row("attention", count.attention);
  row("mlp", count.mlp);
  row("norm", count.norm);
  row("depth average", count.depth_average);
  row("head", count.head);
  row("total", count.total());
  return table;
}

NamedTable memory_table(const RunMemory& memory) {
  NamedTable table{"Memory", {"what", "bytes", ""}, {}, ""};
  const auto row = [&](const char* what, int64_t bytes) {
    if (bytes > 0)
      table.rows.push_back(
          {what, fmt::format("{}", bytes), format_bytes(static_cast<double>(bytes))});
  };
  row("weights", memory.weights);
  row("master weights", memory.master);
  row("gradients", memory.gradients);
  row("optimizer moments", memory.moments);
  row("activations", memory.activations);
  row("rope tables", memory.tables);
  row("program and kernel scratch", memory.runtime);
  row("total", memory.total());
  table.note = fmt::format("activations: {:.1f}% above the most bytes ever alive at once",
                           memory.activations_floor > 0
                               ? 100.0 * (static_cast<double>(memory.activations) /
                                              static_cast<double>(memory.activations_floor) -
                                          1)
                               : 0.0);
  return table;
}

}  // namespace heirloom
