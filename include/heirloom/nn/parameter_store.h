// SPDX-License-Identifier: Apache-2.0
//
// The parameters of a model: what is merged in memory and how it is called in a checkpoint.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "heirloom/core/arena.h"
#include "heirloom/ops/parameter.h"

namespace heirloom {

enum class InitKind : uint8_t { kNormal, kOnes, kZeros };

/// One tensor of a checkpoint: rows [begin, end) of its parameter.
struct ParameterSlice {
  std::string name;  ///< "model.layers.0.self_attn.q_proj.weight"
  int64_t begin = 0, end = 0;
  InitKind init = InitKind::kNormal;
  bool writes_residual =
      false;  ///< projects back into the residual stream (train.init.residual scales it)
  /// Initial values are keyed by (seed, name, head, element within the head), so tensors that two
  /// plans share start equal.
  int64_t rows_per_head = 0;   ///< 0: the slice is one head
  std::vector<int64_t> heads;  ///< head number of each run of rows_per_head rows
};

/// A parameter as the kernels want it (q, k and v rows merged; gate and up merged), one- or
/// two-dimensional.
struct NamedParameter : Parameter {
  Shape shape;
  bool is_embedding = false;  ///< optimizer.decay_embeddings may exempt it
  std::vector<ParameterSlice> slices;
  int64_t offset = 0;  ///< elements from the start of the store's flat buffers
  /// Columns that a checkpoint stores; those behind them, and rows between slices, are padding:
  /// zeros that every step leaves zero. 0: all.
  int64_t stored_columns = 0;

  int64_t numel() const { return shape.numel(); }
  /// Rows of a matrix; elements of a vector count as rows of one element.
  int64_t columns() const { return shape.rank() == 2 ? shape[1] : 1; }
  /// Columns without padding.
  int64_t own_columns() const { return stored_columns ? stored_columns : columns(); }
  /// Shape of a slice as a checkpoint stores it.
  std::vector<int64_t> stored_shape(const ParameterSlice& slice) const;
  bool decays() const { return shape.rank() >= 2; }
};

class ParameterStore {
 public:
  /// Adds a parameter whose slices stand in the order of its rows. The reference stays valid.
  NamedParameter& add(Shape shape, std::vector<ParameterSlice> slices);

  /// Gives every parameter its place in one zeroed buffer of `dtype` (nothing on the meta device).
  void allocate(const Device& device, Dtype dtype);
  /// Points every parameter's gradient into `base`, (elements()) of the accumulate dtype; null on
  /// the meta device.
  void attach_gradients(void* base);

  std::deque<NamedParameter>& all() { return parameters_; }
  const std::deque<NamedParameter>& all() const { return parameters_; }
  /// Elements of the flat buffers: every parameter aligned to 128 bytes.
  int64_t elements() const { return elements_; }
  /// Parameters proper, without alignment and padding.
  int64_t count() const;
  Dtype dtype() const { return dtype_; }
  const Device& device() const { return device_; }
  /// The flat buffer of values; null on the meta device.
  void* data() const { return memory_.data(); }

 private:
  std::deque<NamedParameter> parameters_;
  DeviceMemory memory_;
  int64_t elements_ = 0;
  Dtype dtype_ = Dtype::kFloat32;
  Device device_;
};

/// Standard deviation of initial weights, and the factor for projections that write to the residual
/// stream.
struct InitOptions {
  double std = 0.02;
  double residual_factor = 1;
};

/// Fills `flat`, a buffer of elements() in `dtype` on the parameters' device, laid out as the store's
/// own, with initial values: a pure function of (seed, tensor name, head, element within the head).
void initialize(const ParameterStore& parameters, uint64_t seed, const InitOptions& options,
                void* flat, Dtype dtype);

}  // namespace heirloom
