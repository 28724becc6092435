// SPDX-License-Identifier: Apache-2.0
#include "heirloom/nn/block.h"

#include "heirloom/ops/elementwise.h"
#include "heirloom/ops/linear.h"

namespace heirloom {
namespace {

/// Dropout sites of a layer; every site of a step has its own number.
enum Site : uint64_t { kAttentionWeights, kAttentionOut, kMlpOut, kSitesPerLayer };

uint64_t site(const BlockModule& block, Site which) {
  return 1 + static_cast<uint64_t>(block.layer) * kSitesPerLayer + which;
}

Variable run_linear(Context& context, const LinearModule& module, const Variable& x) {
  return linear(context, x, *module.weight, module.bias);
}

Variable run_attention(Context& context, const BlockModule& block, const Variable& y,
                       const RopeAngles& rope, const int32_t* positions, KvStore& store) {
  const AttentionModule& attention = block.attention;
  Variable o;
  {
    const Variable q = split_heads(context, run_linear(context, attention.merged, y),
                                   attention.spec, attention.qk_norm, rope, positions, store);
    o = attend(context, q, attention.spec, store, site(block, kAttentionWeights));
  }
  return dropout(context, run_linear(context, attention.out, o), context.dropout.residual,
                 site(block, kAttentionOut));
}

Variable run_mlp(Context& context, const BlockModule& block, const Variable& y) {
  const Variable a = activation(context, run_linear(context, block.mlp.up, y), block.mlp.kind);
  return dropout(context, run_linear(context, block.mlp.down, a), context.dropout.residual,
                 site(block, kMlpOut));
}

}  // namespace

AddNorm run_norm(Context& context, const NormModule& norm, const Residual& in) {
  return add_norm(context, in.residual, in.delta, norm.kind, *norm.weight, norm.bias, norm.eps);
}

Residual run_block(Context& context, const BlockModule& block, const Residual& in,
                   const RopeAngles& rope, const int32_t* positions, KvStore& store) {
  AddNorm first = run_norm(context, block.attention_norm, in);
  Residual middle{
      std::move(first.residual),
      run_attention(context, block, std::exchange(first.y, {}), rope, positions, store)};
  if (block.parallel_residual) {
    Variable y = run_norm(context, block.mlp_norm, {middle.residual, {}}).y;
    middle.delta = add(context, middle.delta, run_mlp(context, block, std::exchange(y, {})));
    return middle;
  }
  AddNorm second = run_norm(context, block.mlp_norm, middle);
  middle = {};
  return {std::move(second.residual), run_mlp(context, block, std::exchange(second.y, {}))};
}

}  // namespace heirloom
