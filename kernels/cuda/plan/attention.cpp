// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/plan/attention.h"

#include <algorithm>
#include <numeric>

namespace heirloom::cuda::plan {

int copy_bytes(const void* address, int64_t stride_bytes, int64_t row_bytes) {
  const int64_t all =
      static_cast<int64_t>(reinterpret_cast<uintptr_t>(address)) | stride_bytes | row_bytes;
  for (const int bytes : {16, 8, 4}) {
    if (all % bytes == 0) return bytes;
  }
  return 2;
}

int64_t longest_query_tiles(const AttentionForwardArgs& a, int rows) {
  int64_t longest = 0;
  for (int64_t i = 0; i < a.sequence_count; ++i) {
    longest = std::max(longest, a.sequences[i].queries);
  }
  return (longest + rows - 1) / rows;
}

int64_t longest_key_tiles(const AttentionForwardArgs& a, int rows) {
  int64_t longest = 0;
  for (int64_t i = 0; i < a.sequence_count; ++i) {
    longest = std::max(longest, a.sequences[i].keys);
  }
  return (longest + rows - 1) / rows;
}

HeadUnits head_units(const AttentionBackwardArgs& b, bool two_passes) {
  const int64_t count = b.forward.kv_heads;
  HeadUnits units;
  units.targets.resize(static_cast<size_t>(count));
  std::vector<int> leader(static_cast<size_t>(count));
  std::iota(leader.begin(), leader.end(), 0);

  struct Use {
    const void* data;
    int head;
  };
  std::vector<Use> uses;
  const auto resolve = [&](const KvHeadGrad& grad, int head, GradientTarget(&to)[2]) {
    if (grad.data == nullptr) return;
    to[0] = {grad.data, grad.add};
    to[1] = {grad.second, grad.add_second};
    for (GradientTarget& target : to) {
      if (target.data == nullptr) continue;
      for (const Use& use : uses) {
        if (use.data != target.data) continue;
        target.add = true;
        const int a = leader[static_cast<size_t>(head)], o = leader[static_cast<size_t>(use.head)];
        std::replace(leader.begin(), leader.end(), std::max(a, o), std::min(a, o));
        break;
      }
      uses.push_back({target.data, head});
    }
  };
  const auto keys = [&](int64_t g) {
    resolve(b.dk[g], static_cast<int>(g), units.targets[static_cast<size_t>(g)].dk);
  };
  const auto values = [&](int64_t g) {
    resolve(b.dv[g], static_cast<int>(g), units.targets[static_cast<size_t>(g)].dv);
  };
  for (int64_t g = 0; g < count; ++g) {
    keys(g);
    if (!two_passes) values(g);
  }
  for (int64_t g = 0; two_passes && g < count; ++g) values(g);

  units.first.push_back(0);
  for (int lead = 0; lead < static_cast<int>(count); ++lead) {
    const auto size = units.heads.size();
    for (int64_t g = lead; g < count; ++g) {
      const auto at = static_cast<size_t>(g);
      if (leader[at] != lead) continue;
      if (units.targets[at].dk[0].data == nullptr && units.targets[at].dv[0].data == nullptr)
        continue;
      units.heads.push_back(static_cast<int>(g));
    }
    if (units.heads.size() > size) units.first.push_back(static_cast<int>(units.heads.size()));
  }
  return units;
}

}  // namespace heirloom::cuda::plan
