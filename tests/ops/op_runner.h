// SPDX-License-Identifier: Apache-2.0
//
// Runs a small graph of ops with and without a tape, in any dtype and on any arena.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "heirloom/ops/kv_store.h"
#include "heirloom/ops/parameter.h"
#include "heirloom/ops/tape.h"
#include "support/numerics.h"

namespace heirloom::test {

/// A leaf of the graph: values and whether its gradient is wanted.
struct Leaf {
  Shape shape;
  Values values;
  bool wanted = true;
};

inline Leaf leaf(Shape shape, uint64_t seed, double scale = 1, double shift = 0) {
  Values values = random_values(shape.numel(), seed, scale);
  for (double& v : values) v += shift;
  return {shape, values};
}

inline void put(const Tensor& t, const Values& values) {
  if (t.data() == nullptr) return;
  for (size_t i = 0; i < values.size(); ++i) {
    switch (t.dtype()) {
      case Dtype::kFloat64:
        t.as<double>()[i] = values[i];
        break;
      case Dtype::kBFloat16:
        t.as<bfloat16>()[i] = bfloat16(static_cast<float>(values[i]));
        break;
      default:
        t.as<float>()[i] = static_cast<float>(values[i]);
    }
  }
}

inline Values get(const Tensor& t) {
  Values values;
  if (t.data() == nullptr) return values;
  for (int64_t r = 0; r < t.shape().rows(); ++r) {
    for (int64_t c = 0; c < t.shape().cols(); ++c) {
      const int64_t i = r * t.row_stride() + c;
      values.push_back(t.dtype() == Dtype::kFloat64 ? t.as<double>()[i]
                       : t.dtype() == Dtype::kBFloat16
                           ? static_cast<double>(static_cast<float>(t.as<bfloat16>()[i]))
                           : static_cast<double>(t.as<float>()[i]));
    }
  }
  return values;
}

/// What a graph is built from in one run.
struct Leaves {
  std::vector<Variable> inputs;
  const std::deque<Parameter>& parameters;
  /// Where a graph puts what must live until backward has run.
  std::vector<std::shared_ptr<KvStore>>& stores;
};
using Graph = std::function<std::vector<Variable>(Context&, const Leaves&)>;

struct Case {
  std::vector<Leaf> inputs, parameters;
  Graph graph;
  DropoutState dropout = {};
};

struct Outcome {
  std::vector<Values> outputs;  ///< in the graph's order
  std::vector<Values> inputs,
      parameters;  ///< gradients of sum <cotangent, output>; empty: none arrived
  int64_t allocations = 0;
};

/// The cotangent of output i.
inline Values cotangent(size_t i, int64_t numel) { return random_values(numel, 7000 + i); }

/// Forward, and backward where `record`. Leaves live outside the arena, as parameters and batches do.
inline Outcome run_case(const Case& c, Dtype dtype, bool record, Arena& arena) {
  const bool meta = arena.device().kind == DeviceKind::kMeta;
  std::deque<std::vector<std::byte>> memory;
  const auto outside = [&](const Shape& shape, Dtype d, const Values& values) {
    void* data = nullptr;
    if (!meta) {
      data = memory.emplace_back(static_cast<size_t>(shape.numel() * dtype_size(d)), std::byte{0})
                 .data();
    }
    const Tensor t(data, shape, d, arena.device());
    put(t, values);
    return t;
  };
  const Dtype wide = accumulate_dtype(dtype);
  Outcome outcome;
  {
    Tape tape;
    Context context{arena, record ? &tape : nullptr};
    context.dropout = c.dropout;
    std::deque<Parameter> parameters;
    for (const Leaf& p : c.parameters) {
      Parameter& made = parameters.emplace_back();
      made.value = outside(p.shape, dtype, p.values);
      if (p.wanted) made.grad = outside(p.shape, wide, {});
    }
    std::vector<Variable> inputs;
    for (const Leaf& x : c.inputs) {
      inputs.push_back(
          {outside(x.shape, dtype, x.values), x.wanted && record ? tape.new_slot() : -1});
    }
    std::vector<std::shared_ptr<KvStore>> stores;
    std::vector<Variable> outputs = c.graph(context, {inputs, parameters, stores});
    for (size_t i = 0; i < outputs.size(); ++i) {
      outcome.outputs.push_back(get(outputs[i].value));
      if (!record) continue;
      Tensor g = arena.allocate(outputs[i].value.shape(), dtype);
      put(g, cotangent(i, g.numel()));
      tape.deliver(context, outputs[i].slot, std::move(g));
    }
    outputs.clear();
    if (record) {
      tape.backward(context);
      for (Variable& x : inputs) {
        const Tensor g = tape.take(x.slot);
        outcome.inputs.push_back(g.defined() ? get(g) : Values{});
      }
      for (const Parameter& p : parameters) {
        outcome.parameters.push_back(p.grad.defined() ? get(p.grad) : Values{});
      }
    }
  }
  EXPECT_EQ(arena.live_bytes(), 0) << "a buffer outlived the step";
  outcome.allocations = arena.allocations();
  return outcome;
}

inline Outcome run_case(const Case& c, Dtype dtype, bool record) {
  register_kernels();
  Arena arena(Device{});
  arena.poison(true);
  return run_case(c, dtype, record, arena);
}

/// Every wanted leaf's gradient in float64 against central differences of sum <cotangent, output>, without a tape.
inline void expect_gradients(Case c, const std::string& what) {
  const Outcome recorded = run_case(c, Dtype::kFloat64, true);
  const auto loss = [&c] {
    const Outcome plain = run_case(c, Dtype::kFloat64, false);
    double sum = 0;
    for (size_t i = 0; i < plain.outputs.size(); ++i) {
      sum += dot(plain.outputs[i], cotangent(i, static_cast<int64_t>(plain.outputs[i].size())));
    }
    return sum;
  };
  EXPECT_EQ(recorded.outputs, run_case(c, Dtype::kFloat64, false).outputs)
      << what << ": a tape changed values";
  const auto check = [&](Leaf& x, const Values& gradient, const std::string& name) {
    if (!x.wanted) return;
    const Values kept = x.values;
    expect_gradient(
        [&](const Values& at) {
          x.values = at;
          return loss();
        },
        kept, gradient, what + " " + name);
    x.values = kept;
  };
  for (size_t i = 0; i < c.inputs.size(); ++i)
    check(c.inputs[i], recorded.inputs[i], "input " + std::to_string(i));
  for (size_t i = 0; i < c.parameters.size(); ++i) {
    check(c.parameters[i], recorded.parameters[i], "parameter " + std::to_string(i));
  }
}

/// The graph on the meta device allocates what a real step allocates: a planned arena takes it and gives the same bits.
inline void expect_plannable(const Case& c, Dtype dtype, const std::string& what) {
  const Outcome expected = run_case(c, dtype, true);
  Arena record(Device{DeviceKind::kMeta, 0});
  const Outcome meta = run_case(c, dtype, true, record);
  EXPECT_EQ(meta.allocations, expected.allocations) << what;
  const MemoryPlan plan = plan_memory(record.lifetimes());
  const HostMemory block(plan.peak_bytes);
  Arena planned(Device{}, plan, block.data());
  for (int step = 0; step < 2; ++step) {
    std::memset(block.data(), 0xff, static_cast<size_t>(block.bytes()));
    planned.begin_step();
    const Outcome seen = run_case(c, dtype, true, planned);
    EXPECT_EQ(seen.outputs, expected.outputs) << what;
    EXPECT_EQ(seen.inputs, expected.inputs) << what;
    EXPECT_EQ(seen.parameters, expected.parameters) << what;
  }
}

}  // namespace heirloom::test
