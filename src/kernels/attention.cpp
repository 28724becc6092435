// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/attention.h"

#include <algorithm>

namespace heirloom {
namespace {

/// Pairs (query, key) of one head of a sequence that the mask leaves.
double visible_pairs(const AttentionSequence& s, int64_t window) {
  const auto triangle = [](double n) { return n * (n + 1) / 2; };
  const double first = static_cast<double>(s.keys - s.queries), last = static_cast<double>(s.keys);
  double pairs = triangle(last) - triangle(first);  // query at position p sees p + 1 keys ...
  if (window > 0) {                                 // ... less those that left the window
    const double w = static_cast<double>(window);
    pairs -= triangle(std::max(0.0, last - w)) - triangle(std::max(0.0, first - w));
  }
  return pairs;
}

/// Keys of a sequence that any of its queries sees.
double visible_keys(const AttentionSequence& s, int64_t window) {
  if (s.queries == 0) return 0;
  const int64_t first = s.keys - s.queries;
  return static_cast<double>(window == 0 ? s.keys
                                         : s.keys - std::max<int64_t>(0, first - window + 1));
}

double value_sources(const KvHead& v) {
  return v.data == nullptr ? 0 : v.second == nullptr ? 1 : 2;
}

}  // namespace

KernelCost attention_forward_cost(const AttentionForwardArgs& a, Dtype dtype) {
  const double size = static_cast<double>(dtype_size(dtype));
  const double statistic = static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  const double h = static_cast<double>(a.heads), d = static_cast<double>(a.qk_dim);
  const double e = static_cast<double>(a.v_dim), per_group = h / static_cast<double>(a.kv_heads);
  KernelCost cost;
  for (int64_t i = 0; i < a.sequence_count; ++i) {
    const AttentionSequence& s = a.sequences[i];
    const double queries = static_cast<double>(s.queries), keys = visible_keys(s, a.window);
    const double pairs = visible_pairs(s, a.window);
    cost.bytes_read += queries * h * d * size;
    cost.bytes_written += queries * h * (e * size + (a.lse == nullptr ? 0 : statistic));
    for (int64_t g = 0; g < a.kv_heads; ++g) {
      const double sources = value_sources(a.v[g]);
      cost.bytes_read += keys * (d + sources * e) * size;
      cost.flops += 2 * pairs * per_group * (d + (sources > 0 ? e : 0));
    }
  }
  return cost;
}

int64_t attention_backward_workspace_bytes(int64_t n, int64_t heads, Dtype dtype,
                                           DeviceKind device) {
  return device == DeviceKind::kCuda ? n * heads * dtype_size(accumulate_dtype(dtype)) : 0;
}

KernelCost attention_backward_cost(const AttentionBackwardArgs& b, Dtype dtype) {
  const AttentionForwardArgs& a = b.forward;
  const double size = static_cast<double>(dtype_size(dtype));
  const double accumulate = static_cast<double>(dtype_size(accumulate_dtype(dtype)));
  const double h = static_cast<double>(a.heads), d = static_cast<double>(a.qk_dim);
  const double e = static_cast<double>(a.v_dim), per_group = h / static_cast<double>(a.kv_heads);
  KernelCost cost;
  for (int64_t i = 0; i < a.sequence_count; ++i) {
    const AttentionSequence& s = a.sequences[i];
    const double queries = static_cast<double>(s.queries), rows = static_cast<double>(s.keys);
    const double pairs = visible_pairs(s, a.window), keys = visible_keys(s, a.window);
    cost.bytes_read += queries * h * ((d + 2 * e) * size + accumulate);
    cost.bytes_written += queries * h * d * size;
    for (int64_t g = 0; g < a.kv_heads; ++g) {
      const double sources = value_sources(a.v[g]);
      cost.bytes_read += keys * (d + sources * e) * size;
      if (sources > 0) cost.flops += 2 * pairs * per_group * (3 * d + 2 * e);
      const auto gradient = [&](const KvHeadGrad& grad, double width) {
        if (grad.data == nullptr) return;
        const double bytes = rows * width * (grad.is_accumulate_dtype ? accumulate : size);
        cost.bytes_written += bytes * (grad.second == nullptr ? 1 : 2);
        cost.bytes_read +=
            bytes * ((grad.add ? 1 : 0) + (grad.second != nullptr && grad.add_second ? 1 : 0));
      };
      gradient(b.dk[g], d);
      gradient(b.dv[g], e);
    }
  }
  return cost;
}

}  // namespace heirloom
