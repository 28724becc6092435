// SPDX-License-Identifier: Apache-2.0
//
// The backward of every op through the tape, against central differences in float64.
#include <numbers>

#include "heirloom/ops/activation.h"
#include "heirloom/ops/attention.h"
#include "heirloom/ops/cross_entropy.h"
#include "heirloom/ops/elementwise.h"
#include "heirloom/ops/embedding.h"
#include "heirloom/ops/linear.h"
#include "heirloom/ops/norm.h"
#include "ops/op_runner.h"

namespace heirloom {
namespace {
using namespace test;
using Variables = std::vector<Variable>;

void check(const Case& c, const std::string& what) {
  expect_gradients(c, what);
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) expect_plannable(c, dtype, what);
}

TEST(Gradient, Linear) {
  Case c;
  c.inputs = {leaf({5, 3}, 1)};
  c.parameters = {leaf({4, 3}, 2), leaf({4}, 3)};
  c.graph = [](Context& context, const Leaves& l) {
    return Variables{
        linear(context, l.inputs[0], l.parameters[0], &l.parameters[1]),
        linear(context, l.inputs[0], l.parameters[0], nullptr)};  // the weight's gradient adds up
  };
  check(c, "linear");
  c.parameters[0].wanted = c.parameters[1].wanted = false;
  check(c, "linear, frozen");
  c.parameters[0].wanted = c.parameters[1].wanted = true;
  c.inputs[0].wanted = false;
  check(c, "linear, no input gradient");
}

TEST(Linear, RefusesWhatDoesNotFit) {
  Arena arena(Device{});
  Context context{arena};
  const Parameter weight{arena.allocate({4, 3}, Dtype::kFloat32), {}};
  EXPECT_THROW(linear(context, {arena.allocate({2, 4}, Dtype::kFloat32)}, weight, nullptr),
               ArgumentError);
  EXPECT_THROW(linear(context, {arena.allocate({2, 3}, Dtype::kBFloat16)}, weight, nullptr),
               ArgumentError);
}

TEST(Gradient, AddNorm) {
  for (const NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
    for (const bool with_delta : {false, true}) {
      for (const bool with_bias : {false, true}) {
        if (with_bias && kind == NormKind::kRms) continue;
        for (const bool frozen : {false, true}) {
          Case c;
          c.inputs = {leaf({4, 6}, 1)};
          if (with_delta) c.inputs.push_back(leaf({4, 6}, 2));
          c.parameters = {leaf({6}, 3, 0.3, 1)};
          if (with_bias) c.parameters.push_back(leaf({6}, 4));
          for (Leaf& p : c.parameters) p.wanted = !frozen;
          c.graph = [=](Context& context, const Leaves& l) {
            const AddNorm out =
                add_norm(context, l.inputs[0], with_delta ? l.inputs[1] : Variable(), kind,
                         l.parameters[0], with_bias ? &l.parameters[1] : nullptr, 1e-5);
            return Variables{out.residual, out.y};
          };
          const std::string what = std::string(kind == NormKind::kRms ? "rms" : "layer") +
                                   (with_delta ? ", delta" : "") + (with_bias ? ", bias" : "") +
                                   (frozen ? ", frozen" : "");
          check(c, what);
          // Only the branch, only the residual: the other gradient never arrives.
          Case branch = c, residual = c;
          branch.graph = [g = c.graph](Context& context, const Leaves& l) {
            return Variables{g(context, l)[1]};
          };
          residual.graph = [g = c.graph](Context& context, const Leaves& l) {
            return Variables{g(context, l)[0]};
          };
          check(branch, what + ", branch only");
          if (with_delta) expect_gradients(residual, what + ", residual only");
        }
      }
    }
  }
}

// The gradient of the norm is written in place on what flows past it, and goes to both operands of the sum: they must come apart
// when more is added to one of them.
TEST(Gradient, AddNormInPlaceDoesNotLeak) {
  for (const int reader : {0, 1, 2}) {
    Case c;
    c.inputs = {leaf({3, 4}, 1), leaf({3, 4}, 2)};
    c.parameters = {leaf({4}, 3, 0.3, 1), leaf({4}, 4, 0.3, 1)};
    c.graph = [=](Context& context, const Leaves& l) {
      const Variable a = activation(context, l.inputs[0], ActivationKind::kGelu);
      const Variable b = activation(context, l.inputs[1], ActivationKind::kGelu);
      const AddNorm first = add_norm(context, a, b, NormKind::kRms, l.parameters[0], nullptr, 1e-6);
      const AddNorm second = add_norm(context, first.residual, first.y, NormKind::kRms,
                                      l.parameters[1], nullptr, 1e-6);
      // add() hands one tensor to both operands: b still waits for it when the norm's backward runs.
      switch (reader) {
        case 0:
          return Variables{add(context, second.residual, b), second.y};
        case 1:
          return Variables{add(context, second.y, b)};
        default:
          return Variables{add(context, second.residual, b),
                           add(context, second.residual, second.y), a};
      }
    };
    check(c, "reader " + std::to_string(reader));
  }
}

TEST(Gradient, Activation) {
  for (const ActivationKind kind :
       {ActivationKind::kSwiglu, ActivationKind::kGelu, ActivationKind::kGeluTanh}) {
    Case c;
    c.inputs = {leaf({3, 8}, 5, 2)};
    c.graph = [=](Context& context, const Leaves& l) {
      return Variables{activation(context, l.inputs[0], kind)};
    };
    check(c, "activation " + std::to_string(static_cast<int>(kind)));
  }
}

TEST(Gradient, Dropout) {
  Case c;
  c.inputs = {leaf({6, 5}, 6)};
  c.dropout = {0, 0, 0, 17, 2, 3};
  c.graph = [](Context& context, const Leaves& l) {
    return Variables{dropout(context, l.inputs[0], 0.4, 9)};
  };
  check(c, "dropout");
  const Values y = run_case(c, Dtype::kFloat64, false).outputs[0];
  const auto zeros = std::count(y.begin(), y.end(), 0.0);
  EXPECT_GT(zeros, 3);
  EXPECT_LT(zeros, 25);
  for (size_t i = 0; i < y.size(); ++i) {
    EXPECT_NEAR(y[i], y[i] == 0 ? 0 : c.inputs[0].values[i] / 0.6, 1e-14);
  }
  // Sequences 2 and 3 of one batch are what two batches of one see.
  Values apart;
  for (uint32_t s = 0; s < 2; ++s) {
    Case half = c;
    half.dropout.first_sequence = 2 + s;
    half.inputs[0].shape = {3, 5};
    half.inputs[0].values.assign(c.inputs[0].values.begin() + 15 * s,
                                 c.inputs[0].values.begin() + 15 * (s + 1));
    const Values part = run_case(half, Dtype::kFloat64, false).outputs[0];
    apart.insert(apart.end(), part.begin(), part.end());
  }
  EXPECT_EQ(apart, y);
  c.graph = [](Context& context, const Leaves& l) {
    return Variables{dropout(context, l.inputs[0], 0.4, 10)};
  };
  EXPECT_NE(run_case(c, Dtype::kFloat64, false).outputs[0], y) << "another site, another mask";
}

TEST(Gradient, Embedding) {
  static const std::vector<int32_t> tokens = {3, 0, 3, 3, 6}, positions = {0, 1, 2, 0, 1};
  for (const bool with_positions : {false, true}) {
    Case c;
    c.parameters = {leaf({7, 4}, 1)};
    if (with_positions) c.parameters.push_back(leaf({3, 4}, 2));
    c.graph = [=](Context& context, const Leaves& l) {
      return Variables{embedding(context, {tokens.data(), positions.data(), 5}, l.parameters[0],
                                 with_positions ? &l.parameters[1] : nullptr)};
    };
    check(c, with_positions ? "embedding, positions" : "embedding");
  }
}

TEST(Gradient, CrossEntropyOverSeveralChunks) {
  constexpr int64_t kLossChunkRows = loss_chunk_rows(DeviceKind::kCpu);
  constexpr int64_t kRows = 2 * kLossChunkRows + 37, kWidth = 4, kVocab = 5;
  constexpr double kScale = 0.75;
  register_kernels();
  Values x = random_values(kRows * kWidth, 1, 2), head = random_values(kVocab * kWidth, 2, 2);
  std::vector<int32_t> targets;
  for (int64_t i = 0; i < kRows; ++i)
    targets.push_back(i % 5 == 3 ? -1 : static_cast<int32_t>((7 * i) % kVocab));
  // Whole chunk ends and one whole chunk's first row unscored.
  targets[0] = targets[kLossChunkRows - 1] = targets[kLossChunkRows] = targets[kRows - 1] = -1;

  const auto run = [&](Tape* tape, Values* dx, Values* dhead) {
    Arena arena(Device{});
    arena.poison(true);
    Context context{arena, tape};
    std::vector<double> nll(kRows, std::numeric_limits<double>::quiet_NaN());
    Values gradient(head.size(), 0.0);
    Parameter h{Tensor(head.data(), {kVocab, kWidth}, Dtype::kFloat64), {}};
    if (dhead) h.grad = Tensor(gradient.data(), {kVocab, kWidth}, Dtype::kFloat64);
    const Variable in{Tensor(x.data(), {kRows, kWidth}, Dtype::kFloat64),
                      tape ? tape->new_slot() : -1};
    cross_entropy_loss(context, in, h, targets.data(), kScale, nll.data());
    if (tape) {
      tape->backward(context);
      *dx = get(tape->take(in.slot));
      if (dhead) *dhead = gradient;
    }
    return nll;
  };
  Tape tape;
  Values dx, dhead;
  const std::vector<double> recorded = run(&tape, &dx, &dhead),
                            nll = run(nullptr, nullptr, nullptr);
  EXPECT_EQ(recorded, nll);
  for (int64_t i = 0; i < kRows; ++i) {
    const size_t row = static_cast<size_t>(i);
    double sum = 0, chosen = 0;
    for (int64_t v = 0; v < kVocab; ++v) {
      double z = 0;
      for (int64_t k = 0; k < kWidth; ++k)
        z += x[static_cast<size_t>(i * kWidth + k)] * head[static_cast<size_t>(v * kWidth + k)];
      sum += std::exp(z);
      if (v == targets[row]) chosen = z;
    }
    EXPECT_NEAR(nll[row], targets[row] < 0 ? 0.0 : std::log(sum) - chosen, 1e-12) << i;
    if (targets[row] >= 0) continue;
    for (int64_t k = 0; k < kWidth; ++k)
      EXPECT_EQ(dx[static_cast<size_t>(i * kWidth + k)], 0.0) << "row " << i;
  }
  const auto loss = [&] {
    double sum = 0;
    for (const double v : run(nullptr, nullptr, nullptr)) sum += v;
    return kScale * sum;
  };
  const Values kept_head = head;
  expect_gradient(
      [&](const Values& at) {
        head = at;
        return loss();
      },
      kept_head, dhead, "head");
  head = kept_head;
  for (const int64_t i :
       {int64_t{1}, kLossChunkRows - 2, kLossChunkRows + 1, 2 * kLossChunkRows, kRows - 2}) {
    const auto begin = static_cast<ptrdiff_t>(i * kWidth);
    const Values kept(x.begin() + begin, x.begin() + begin + kWidth);
    expect_gradient(
        [&](const Values& at) {
          std::copy(at.begin(), at.end(), x.begin() + begin);
          return loss();
        },
        kept, Values(dx.begin() + begin, dx.begin() + begin + kWidth), "row " + std::to_string(i));
    std::copy(kept.begin(), kept.end(), x.begin() + begin);
  }
  Tape frozen;
  Values dx_frozen;
  run(&frozen, &dx_frozen, nullptr);
  EXPECT_EQ(dx_frozen, dx);
}

// Three layers over five streams. Layer 1 projects two K and two V heads under grouped queries; K head 1 and both V heads are
// shared. Layer 2 has a K and a V head of its own, reads K head 1 of layer 1 twice, a mean, a zero head and a shared V head.
// Layer 3 owns nothing. So every kind of source is read, slots are written by layer 3 and added to by layers 2 and 1, and two
// heads of one call meet in one slot.
constexpr int64_t kDim = 4;
const std::vector<KvStreamSpec> kStreams = {
    {4, 4, false}, {4, 4, true}, {8, 4, true}, {4, 4, false}, {4, 4, false}};

AttentionSpec layer_spec(int layer, int64_t window) {
  AttentionSpec s;
  s.heads = 4;
  s.qk_dim = s.v_dim = kDim;
  s.scale = 0.6;
  s.window = window;
  const KvRef k1a{0, 0}, k1b{1, 0}, v1a{2, 0}, v1b{2, 4}, mean{2, 0, 2, 4}, zero{};
  switch (layer) {
    case 1:
      s.kv_heads = 2;
      s.own_keys = s.keys = {k1a, k1b};
      s.own_values = s.values = {v1a, v1b};
      s.streams = {0, 1, 2};
      break;
    case 2:
      s.kv_heads = 4;
      s.own_keys = {{3, 0}};
      s.own_values = {{4, 0}};
      s.keys = {{3, 0}, k1b, k1b, k1b};
      s.values = {{4, 0}, mean, zero, v1b};
      s.streams = {3, 4};
      break;
    default:
      s.kv_heads = 2;
      s.keys = {k1b, k1b};
      s.values = {mean, v1a};
  }
  return s;
}

struct AttentionShape {
  RopeStyle style = RopeStyle::kHalf;
  int64_t rotary_dim = 4, window = 0;
  bool qk_norm = false;
  double dropout = 0;
};

/// Sequences of 5 and 4 tokens.
std::vector<AttentionSequence> two_sequences() {
  std::vector<AttentionSequence> sequences(2);
  sequences[0].queries = sequences[0].keys = 5;
  sequences[1].query_row = sequences[1].key_row = 5;
  sequences[1].queries = sequences[1].keys = 4;
  sequences[1].dropout_sequence = 1;
  return sequences;
}
constexpr int64_t kTokens = 9;
const std::vector<int32_t> kPositions = {0, 1, 2, 3, 4, 0, 1, 2, 3};

/// Layers run as (merged projection of layer l) -> split -> attend. With `mixed`, layers are chained: an output linear of layer
/// l feeds layer l + 1's projection, each layer a recompute segment where `segments`.
class AttentionGraph {
 public:
  explicit AttentionGraph(const AttentionShape& shape) : shape_(shape) {
    for (int layer = 1; layer <= 3; ++layer) specs_.push_back(layer_spec(layer, shape.window));
    const int64_t half = shape.rotary_dim / 2;
    for (int64_t p = 0; p < 5; ++p) {
      for (int64_t f = 0; f < half; ++f) {
        const double angle = static_cast<double>(p) / (1.0 + 3.0 * static_cast<double>(f));
        cosines_.push_back(std::cos(angle));
        sines_.push_back(std::sin(angle));
      }
    }
  }
  const std::vector<AttentionSpec>& specs() const { return specs_; }

  /// Parameters [0, 2): weights of qk_norm.
  Variable attend_layer(Context& context, size_t layer, const Variable& merged,
                        const std::deque<Parameter>& parameters, KvStore& store) const {
    const AttentionSpec& spec = specs_[layer];
    QkNorm norm;
    if (shape_.qk_norm) {
      norm.query = &parameters[0];
      if (!spec.own_keys.empty()) norm.key = &parameters[1];
      norm.eps = 1e-4;
    }
    const Variable q = split_heads(context, merged, spec, norm, rope(context, merged.value.dtype()),
                                   kPositions.data(), store);
    return attend(context, q, spec, store, 40 + layer);
  }

  std::shared_ptr<KvStore> store(Dtype dtype) const {
    return std::make_shared<ActivationKvStore>(kStreams, dtype, kTokens, two_sequences());
  }

 private:
  RopeAngles rope(Context& context, Dtype dtype) const {
    RopeAngles angles;
    if (shape_.rotary_dim == 0) return angles;
    const Dtype wide = accumulate_dtype(dtype);
    angles.rotary_dim = shape_.rotary_dim;
    angles.style = shape_.style;
    const Shape shape{5, shape_.rotary_dim / 2};
    const auto table = [&](const std::vector<double>& from, std::vector<float>& narrow) {
      if (context.meta()) return Tensor(nullptr, shape, wide, context.device());
      if (wide == Dtype::kFloat64) return Tensor(const_cast<double*>(from.data()), shape, wide);
      narrow.assign(from.begin(), from.end());
      return Tensor(narrow.data(), shape, wide);
    };
    angles.cosines = table(cosines_, narrow_cosines_);
    angles.sines = table(sines_, narrow_sines_);
    return angles;
  }

  AttentionShape shape_;
  std::vector<AttentionSpec> specs_;
  std::vector<double> cosines_, sines_;
  mutable std::vector<float> narrow_cosines_, narrow_sines_;
};

std::vector<Leaf> qk_norm_weights() { return {leaf({kDim}, 31, 0.3, 1), leaf({kDim}, 32, 0.3, 1)}; }

Case attention_case(const AttentionGraph& graph, const AttentionShape& shape) {
  Case c;
  for (size_t l = 0; l < 3; ++l)
    c.inputs.push_back(leaf({kTokens, graph.specs()[l].merged_width()}, 20 + l));
  c.parameters = qk_norm_weights();
  for (Leaf& p : c.parameters) p.wanted = shape.qk_norm;
  c.dropout = {0, shape.dropout, 0, 5, 0, 5};
  c.graph = [&graph](Context& context, const Leaves& l) {
    l.stores.push_back(graph.store(l.inputs[0].value.dtype()));
    Variables outputs;
    for (size_t layer = 0; layer < 3; ++layer) {
      outputs.push_back(
          graph.attend_layer(context, layer, l.inputs[layer], l.parameters, *l.stores.back()));
    }
    return outputs;
  };
  return c;
}

TEST(Gradient, AttentionOverSharedStreams) {
  const AttentionShape shapes[] = {{},
                                   {RopeStyle::kInterleaved, 4, 0, false, 0},
                                   {RopeStyle::kHalf, 2, 3, true, 0},
                                   {RopeStyle::kInterleaved, 2, 0, true, 0.3},
                                   {RopeStyle::kHalf, 0, 2, false, 0.3}};
  for (const AttentionShape& shape : shapes) {
    const AttentionGraph graph(shape);
    check(attention_case(graph, shape),
          "attention, style " + std::to_string(static_cast<int>(shape.style)) + " rotary " +
              std::to_string(shape.rotary_dim) + " window " + std::to_string(shape.window) +
              (shape.qk_norm ? " qk_norm" : "") + (shape.dropout > 0 ? " dropout" : ""));
  }
}

// Without a gradient from layers 2 and 3 the shared heads gather layer 1's alone; without one from layer 1 only the others'; a
// head nobody asked about has gradient zero.
TEST(Gradient, AttentionWithSilentReaders) {
  const AttentionShape shape;
  const AttentionGraph graph(shape);
  const Case all = attention_case(graph, shape);
  for (const size_t only : {size_t{0}, size_t{1}, size_t{2}}) {
    Case c = all;
    c.graph = [g = all.graph, only](Context& context, const Leaves& l) {
      return Variables{g(context, l)[only]};
    };
    // Layers past the only one get no gradient at all.
    for (size_t l = 0; l < 3; ++l) c.inputs[l].wanted = l <= only;
    if (only == 2) c.inputs[1].wanted = false;  // nobody after layer 2 reads what it writes
    expect_gradients(c, "only layer " + std::to_string(only + 1));
  }
}

// Layers chained through a residual stream, each one a recompute segment or not.
Case chained_case(const AttentionGraph& graph, bool segments) {
  constexpr int64_t kWidth = 6;
  Case c;
  c.inputs = {leaf({kTokens, kWidth}, 1), leaf({kTokens, kWidth}, 2)};
  c.parameters = qk_norm_weights();
  for (size_t l = 0; l < 3; ++l) {
    c.parameters.push_back(leaf({kWidth}, 50 + l, 0.3, 1));
    c.parameters.push_back(leaf({graph.specs()[l].merged_width(), kWidth}, 60 + l, 0.7));
    c.parameters.push_back(leaf({kWidth, 4 * kDim}, 70 + l, 0.7));
  }
  c.dropout = {0, 0.2, 0, 8, 0, 5};
  c.graph = [&graph, segments](Context& context, const Leaves& l) {
    l.stores.push_back(graph.store(l.inputs[0].value.dtype()));
    KvStore* store = l.stores.back().get();
    Variables state = l.inputs;
    for (size_t layer = 0; layer < 3; ++layer) {
      const Parameter* own = &l.parameters[2 + 3 * layer];
      const auto forward = [&graph, layer, own, store, &all = l.parameters](Context& cx,
                                                                            const Variables& in) {
        const size_t first = 2 + 3 * layer;
        AddNorm norm = add_norm(cx, in[0], in[1], NormKind::kRms, *own, nullptr, 1e-6);
        const Variable merged = linear(cx, norm.y, all[first + 1], nullptr);
        const Variable o = graph.attend_layer(cx, layer, merged, all, *store);
        return Variables{norm.residual,
                         dropout(cx, linear(cx, o, all[first + 2], nullptr), 0.2, 90 + layer)};
      };
      state = segments ? segment(context, state, forward) : forward(context, state);
    }
    return state;
  };
  return c;
}

TEST(Segment, RecomputedEqualsStoredBitForBit) {
  const AttentionShape shape{RopeStyle::kHalf, 4, 0, true, 0.2};
  const AttentionGraph graph(shape);
  const Case stored = chained_case(graph, false), again = chained_case(graph, true);
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat64}) {
    const Outcome a = run_case(stored, dtype, true), b = run_case(again, dtype, true);
    EXPECT_EQ(a.outputs, b.outputs) << dtype_name(dtype);
    EXPECT_EQ(a.inputs, b.inputs) << dtype_name(dtype);
    EXPECT_EQ(a.parameters, b.parameters) << dtype_name(dtype);
    expect_plannable(again, dtype, "segments");
  }
}

TEST(Segment, ChainedLayersHaveTheRightGradients) {
  const AttentionShape shape{RopeStyle::kHalf, 4, 0, false, 0.2};
  const AttentionGraph graph(shape);
  for (const bool segments : {false, true}) {
    Case c = chained_case(graph, segments);
    for (size_t i = 0; i < c.parameters.size(); ++i) c.parameters[i].wanted = i >= 2;
    expect_gradients(c, segments ? "segments" : "stored");
  }
}

TEST(Segment, KeepsNothingButItsInputs) {
  const AttentionShape shape{RopeStyle::kHalf, 4, 0, false, 0};
  const AttentionGraph graph(shape);
  Arena stored(Device{DeviceKind::kMeta, 0}), again(Device{DeviceKind::kMeta, 0});
  run_case(chained_case(graph, false), Dtype::kFloat32, true, stored);
  run_case(chained_case(graph, true), Dtype::kFloat32, true, again);
  EXPECT_LT(plan_memory(again.lifetimes()).floor_bytes,
            plan_memory(stored.lifetimes()).floor_bytes);
}

TEST(Segment, WithoutATapeIsTheForwardItself) {
  const AttentionShape shape;
  const AttentionGraph graph(shape);
  EXPECT_EQ(run_case(chained_case(graph, true), Dtype::kFloat32, false).outputs,
            run_case(chained_case(graph, false), Dtype::kFloat32, false).outputs);
}

// A segment that hands one of its inputs through.
TEST(Segment, MayReturnAnInput) {
  Case c;
  c.inputs = {leaf({2, 4}, 1)};
  c.graph = [](Context& context, const Leaves& l) {
    return segment(context, l.inputs, [](Context& cx, const Variables& in) {
      return Variables{in[0], activation(cx, in[0], ActivationKind::kGelu)};
    });
  };
  check(c, "pass through");
}

TEST(SplitHeads, RefusesAnotherWidth) {
  const AttentionShape shape;
  const AttentionGraph graph(shape);
  Arena arena(Device{});
  Context context{arena};
  const auto store = graph.store(Dtype::kFloat32);
  EXPECT_THROW(
      graph.attend_layer(context, 0, {arena.allocate({kTokens, 31}, Dtype::kFloat32)}, {}, *store),
      ArgumentError);
}

}  // namespace
}  // namespace heirloom
