// SPDX-License-Identifier: Apache-2.0
//
// A pre-norm transformer block. It knows nothing of variants: its AttentionSpec says where heads
// are written and read.
#pragma once

#include "heirloom/ops/activation.h"
#include "heirloom/ops/attention.h"
#include "heirloom/ops/norm.h"

namespace heirloom {

struct NormModule {
  NormKind kind = NormKind::kRms;
  double eps = 1e-6;
  const Parameter* weight = nullptr;
  const Parameter* bias = nullptr;
};

struct LinearModule {
  const Parameter* weight = nullptr;
  const Parameter* bias = nullptr;
};

struct AttentionModule {
  AttentionSpec spec;
  LinearModule merged;  ///< rows: q heads, own K heads, own V heads
  LinearModule out;
  QkNorm qk_norm;
};

struct MlpModule {
  ActivationKind kind = ActivationKind::kSwiglu;
  LinearModule up;  ///< SwiGLU: gate rows, then up rows
  LinearModule down;
};

struct BlockModule {
  int64_t layer = 0;
  NormModule attention_norm, mlp_norm;
  AttentionModule attention;
  MlpModule mlp;
  bool parallel_residual = false;
};

/// The residual stream between blocks: x = residual + delta, added inside the next norm. delta may
/// be undefined.
struct Residual {
  Variable residual, delta;
};

/// Runs a block over N tokens at `positions`.
///   sequential: x1 = x + attention(norm1 x);  out = x1 + mlp(norm2 x1)
///   parallel:   out = x + attention(norm1 x) + mlp(norm2 x)
Residual run_block(Context& context, const BlockModule& block, const Residual& in,
                   const RopeAngles& rope, const int32_t* positions, KvStore& store);

/// x + delta and its norm.
AddNorm run_norm(Context& context, const NormModule& norm, const Residual& in);

}  // namespace heirloom
