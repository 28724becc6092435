// SPDX-License-Identifier: Apache-2.0
//
// An MLP width that memory rounds up: what is stored, initialised and trained is the model's own.
#include <gtest/gtest.h>

#include <cstring>

#include "heirloom/kernels/optimizer.h"
#include "heirloom/model/checkpoint.h"
#include "heirloom/model/transformer.h"
#include "io/temporary_directory.h"

namespace heirloom {
namespace {

constexpr int64_t kOwn = 1029, kPadded = 1088;

ModelConfig config_of(int64_t width, bool gated, bool bias) {
  Json json = parse_json(R"({"model_type": "heirloom", "vocab_size": 31, "hidden_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32})",
                         "test");
  json["intermediate_size"] = width;
  json["mlp"] = gated ? "swiglu" : "gelu";
  json["mlp_bias"] = bias;
  return parse_model_config(json, "test");
}

std::vector<float> flat(const Transformer& model) {
  const float* data = static_cast<const float*>(model.parameters().data());
  return {data, data + model.parameters().elements()};
}

TEST(PaddedWidth, StoresAndCountsItsOwnAndKeepsZeros) {
  register_kernels();
  for (const bool gated : {true, false}) {
    for (const bool bias : {true, false}) {
      SCOPED_TRACE(fmt::format("gated {} bias {}", gated, bias));
      const ModelConfig config = config_of(kOwn, gated, bias);
      Transformer model(config, Device{}, Dtype::kFloat32);
      Transformer wide(config_of(kPadded, gated, bias), Device{}, Dtype::kFloat32);
      ASSERT_EQ(model.parameters().elements(), wide.parameters().elements());
      EXPECT_EQ(model.parameters().count(), count_parameters(config).total());
      initialize(model.parameters(), 1, {}, model.parameters().data(), Dtype::kFloat32);
      const std::vector<float> weights = flat(model);

      // The wide model initialises what the narrow one has to other values (an element's number in
      // its tensor changes with the width), but where the narrow one has padding it has weights.
      initialize(wide.parameters(), 1, {}, wide.parameters().data(), Dtype::kFloat32);
      const std::vector<float> all = flat(wide);
      int64_t padding = 0;
      for (size_t i = 0; i < all.size(); ++i) padding += weights[i] == 0 && all[i] != 0;
      const int64_t extra = kPadded - kOwn;
      EXPECT_EQ(padding, 2 * extra * 16 * (gated ? 3 : 2));

      // A round trip through a file, whose tensors have the model's own shapes.
      const test::TemporaryDirectory directory;
      write_model(directory / "", config, model.parameters(), weights.data(), Dtype::kFloat32,
                  Dtype::kFloat32, {});
      const SafetensorsModel stored(directory / "");
      EXPECT_EQ(stored.tensors().at("model.layers.1.mlp.down_proj.weight").shape,
                (std::vector<int64_t>{16, kOwn}));
      EXPECT_EQ(stored.tensors().at("model.layers.1.mlp.up_proj.weight").shape,
                (std::vector<int64_t>{kOwn, 16}));
      Transformer again(config, Device{}, Dtype::kFloat32);
      load_weights(directory / "", config, again.parameters(), again.parameters().data(),
                   Dtype::kFloat32);
      EXPECT_EQ(flat(again), weights);

      // Gradients of padding are zero, so an optimizer never moves it.
      std::vector<float> gradients(weights.size(), 0);
      model.parameters().attach_gradients(gradients.data());
      model.ensure_positions(8);
      const std::vector<int32_t> tokens = {1, 7, 30, 2, 9, 9, 4, 0},
                                 positions = {0, 1, 2, 3, 4, 5, 6, 7};
      std::vector<double> nll(8);
      AttentionSequence sequence;
      sequence.queries = sequence.keys = 8;
      Arena arena(Device{});
      Tape tape;
      Context context{arena, &tape};
      ActivationKvStore store(model.stream_specs(), Dtype::kFloat32, 8, {sequence});
      model.loss(context, {tokens.data(), positions.data(), 8}, store, tokens.data(), 1,
                 nll.data());
      tape.backward(context);
      int64_t moved = 0, still = 0;
      for (size_t i = 0; i < weights.size(); ++i) {
        if (weights[i] == 0 && all[i] != 0) {
          EXPECT_EQ(gradients[i], 0) << i;
          ++still;
        } else {
          moved += gradients[i] != 0;
        }
      }
      EXPECT_EQ(still, padding);
      EXPECT_GT(moved, 1000);
    }
  }
}

}  // namespace
}  // namespace heirloom
