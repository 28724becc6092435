// SPDX-License-Identifier: Apache-2.0
//
// Where attention finds keys and values. A stream is a matrix (rows, width) that one layer writes
// and that it and possibly later layers read. The same forward pass runs on activations (training,
// evaluation) and on the paged cache (inference): only the store behind it differs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "heirloom/kernels/attention.h"
#include "heirloom/ops/context.h"

namespace heirloom {

struct KvStreamSpec {
  int64_t width = 0;     ///< elements per token
  int64_t head_dim = 0;  ///< width is a multiple of it
  bool shared = false;   ///< read by layers after the one that writes it
};

/// Where one head lies: stream < 0 for a head of zeros; second_stream >= 0: the head is the mean of
/// the two.
struct KvRef {
  int32_t stream = -1;
  int64_t column = 0;
  int32_t second_stream = -1;
  int64_t second_column = 0;
};

class KvStore {
 public:
  virtual ~KvStore() = default;

  /// The stream's matrix. Rows are tokens of the batch (slots() null) or slots of the cache.
  virtual Tensor stream(Context& context, int32_t index) = 0;
  /// The cache row of each token of the batch; null where row i is token i.
  virtual const int64_t* slots() const { return nullptr; }
  /// The sequences of the batch.
  virtual std::span<const AttentionSequence> sequences() const = 0;
  /// The same in the memory of the device.
  virtual const AttentionSequence* device_sequences() const { return sequences().data(); }
  /// The layer that wrote `index` has attended; a private stream may be let go.
  virtual void written_and_read(int32_t index) { static_cast<void>(index); }

  /// The gradient of a head gathers here, after rope and qk_norm: written by the first layer
  /// (backward order) that read it, added to by the others. Shared streams gather in the accumulate
  /// dtype.
  virtual KvHeadGrad gradient_target(Context& context, const KvRef& ref);
  /// The layer's contributions to these heads are in: later ones add. Called once per layer, after
  /// its kernel.
  virtual void mark_written(const KvRef& ref) { static_cast<void>(ref); }
  /// What gathered for the head at (stream, column): data null where no layer contributed.
  virtual KvHeadGrad gathered(const KvRef& ref);
  /// All of the stream's readers and its writer are done with backward.
  virtual void finish_backward(int32_t index) { static_cast<void>(index); }
};

/// Streams as activations of one step: made when first written, gone when the writer's backward has
/// run.
class ActivationKvStore final : public KvStore {
 public:
  /// `device_sequences`: the sequences in the memory of the device; null: those given are.
  ActivationKvStore(std::vector<KvStreamSpec> specs, Dtype dtype, int64_t rows,
                    std::vector<AttentionSequence> sequences,
                    const AttentionSequence* device_sequences = nullptr);

  Tensor stream(Context& context, int32_t index) override;
  std::span<const AttentionSequence> sequences() const override { return sequences_; }
  const AttentionSequence* device_sequences() const override {
    return device_sequences_ ? device_sequences_ : sequences_.data();
  }
  void written_and_read(int32_t index) override;
  KvHeadGrad gradient_target(Context& context, const KvRef& ref) override;
  void mark_written(const KvRef& ref) override;
  KvHeadGrad gathered(const KvRef& ref) override;
  void finish_backward(int32_t index) override;

 private:
  struct State {
    Tensor value, gradient;
    std::vector<uint8_t> written;  // per head: its gradient has a first contribution
  };
  std::vector<KvStreamSpec> specs_;
  std::vector<State> states_;
  Dtype dtype_;
  int64_t rows_;
  std::vector<AttentionSequence> sequences_;
  const AttentionSequence* device_sequences_;
};

}  // namespace heirloom
