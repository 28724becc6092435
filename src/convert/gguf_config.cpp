// SPDX-License-Identifier: Apache-2.0
#include "gguf_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <numbers>

#include "heirloom/core/error.h"
#include "heirloom/core/half.h"

namespace heirloom {
namespace {

using Tensors = std::map<std::string, GgufTensor>;

constexpr const char* kArchitectures[] = {"llama", "qwen2", "qwen3", "gpt2", "gptneox"};
constexpr const char* kFrequencyFactors = "rope_freqs.weight";
constexpr double kFactorTolerance = 1e-4;

/// A float32 of the file as the decimal number it was written from: 1e-05, not
/// 9.999999747378752e-06.
double decimal(double value) {
  const auto single = static_cast<float>(value);
  if (static_cast<double>(single) != value || !std::isfinite(value)) return value;
  const std::string text = fmt::format("{}", single);
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

class ConfigReader {
 public:
  ConfigReader(const GgufMetadata& metadata, const Tensors& tensors)
      : m_(metadata), tensors_(tensors), arch_(metadata.text("general.architecture")) {}

  ModelConfig run() {
    refuse_foreign();
    ModelConfig c;
    c.kept = Json::object();
    c.model_type = arch_ == "gptneox" ? "gpt_neox" : arch_;
    read_sizes(c);
    read_block(c);
    if (c.position == PositionKind::kRope) read_rope(c);
    read_tokens(c);
    c.stored_dtype = stored_dtype();
    return c;
  }

 private:
  std::string key(const char* name) const { return arch_ + "." + name; }
  bool has(const std::string& tensor) const { return tensors_.contains(tensor); }
  double number(const char* name, double fallback) const {
    const auto value = m_.find_number(key(name));
    return value ? decimal(*value) : fallback;
  }

  int64_t check_size(const std::string& name, int64_t value) const {
    if (value < 1 || value > INT32_MAX) {
      throw_error<FormatError>("[gguf] expected {} from 1 to {}; got {}; {}", name, INT32_MAX,
                               value, m_.origin());
    }
    return value;
  }
  int64_t size(const char* name) const { return check_size(key(name), m_.integer(key(name))); }
  int64_t size_or(const char* name, int64_t fallback) const {
    const auto value = m_.find_integer(key(name));
    return value ? check_size(key(name), *value) : fallback;
  }

  [[noreturn]] void unsupported(const std::string& expected, const std::string& got) const {
    throw_error<UnsupportedError>("[gguf] expected {}; got {}; {}", expected, got, m_.origin());
  }

  void refuse_foreign() const {
    if (std::find(std::begin(kArchitectures), std::end(kArchitectures), arch_) ==
        std::end(kArchitectures)) {
      unsupported(fmt::format("an architecture of {}", fmt::join(kArchitectures, ", ")), arch_);
    }
    if (m_.find_integer("split.count").value_or(1) > 1) {
      unsupported("a model in one file",
                  "one part of several (llama-gguf-split --merge joins them)");
    }
    if (m_.find_integer(key("expert_count")).value_or(0) > 0) {
      unsupported("a dense model", "a mixture of experts");
    }
  }

  void read_sizes(ModelConfig& c) const {
    const auto embedding = tensors_.find("token_embd.weight");
    if (embedding == tensors_.end() || embedding->second.shape.size() != 2) {
      throw_error<FormatError>(
          "[gguf] expected a matrix token_embd.weight; got {} tensors without "
          "it; {}",
          tensors_.size(), m_.origin());
    }
    c.vocab_size = check_size("the rows of token_embd.weight", embedding->second.shape[0]);
    const GgufValue* tokens = m_.find_texts("tokenizer.ggml.tokens");
    if (tokens != nullptr && tokens->size() > static_cast<size_t>(c.vocab_size)) {
      throw_error<FormatError>(
          "[gguf] expected at most the {} tokens of token_embd.weight; got {} "
          "in tokenizer.ggml.tokens; {}",
          c.vocab_size, tokens->size(), m_.origin());
    }
    c.hidden_size = size("embedding_length");
    c.num_hidden_layers = size("block_count");
    c.intermediate_size = size("feed_forward_length");
    c.num_attention_heads = size("attention.head_count");
    c.num_key_value_heads = size_or("attention.head_count_kv", c.num_attention_heads);
    c.max_position_embeddings = size("context_length");
    if (const auto length = m_.find_integer(key("attention.key_length"))) {
      c.head_dim = check_size(key("attention.key_length"), *length);
    } else if (c.hidden_size % c.num_attention_heads != 0) {
      throw_error<FormatError>(
          "[gguf] expected {} or an embedding_length that {} heads divide; got "
          "{}; {}",
          key("attention.key_length"), c.num_attention_heads, c.hidden_size, m_.origin());
    } else {
      c.head_dim = c.hidden_size / c.num_attention_heads;
    }
    if (const int64_t values = size_or("attention.value_length", c.head_dim);
        values != c.head_dim) {
      unsupported(fmt::format("values as long as keys ({})", c.head_dim),
                  fmt::format("{}", values));
    }
  }

  void read_block(ModelConfig& c) const {
    const bool gpt = arch_ == "gpt2" || arch_ == "gptneox";
    c.norm = gpt ? NormKind::kLayer : NormKind::kRms;
    c.norm_bias = gpt;
    c.norm_eps = number(gpt ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon",
                        gpt ? 1e-5 : 1e-6);
    c.mlp = arch_ == "gpt2"      ? ActivationKind::kGeluTanh
            : arch_ == "gptneox" ? ActivationKind::kGelu
                                 : ActivationKind::kSwiglu;
    c.position = arch_ == "gpt2" ? PositionKind::kLearned : PositionKind::kRope;
    c.attention_bias = has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias");
    c.attention_out_bias = has("blk.0.attn_output.bias");
    c.mlp_bias = has("blk.0.ffn_up.bias");
    c.qk_norm = has("blk.0.attn_q_norm.weight");
    c.parallel_residual =
        arch_ == "gptneox" && m_.find_boolean(key("use_parallel_residual")).value_or(true);
    c.sliding_window = m_.find_integer(key("attention.sliding_window")).value_or(0);
    if (c.sliding_window > 0 && arch_ == "llama") c.model_type = "mistral";
    c.tie_word_embeddings = !has("output.weight") || stores_tied_head(c, tensors_);
  }

  void read_rope(ModelConfig& c) const {
    c.rope_theta = number("rope.freq_base", 10000);
    const int64_t rotary = size_or("rope.dimension_count", c.head_dim);
    if (rotary > c.head_dim || (rotary != c.head_dim && arch_ != "gptneox")) {
      unsupported(fmt::format("{} of {}", key("rope.dimension_count"), c.head_dim),
                  fmt::format("{}", rotary));
    }
    c.partial_rotary_factor = static_cast<double>(rotary) / static_cast<double>(c.head_dim);
    read_scaling(c);
    if (has(kFrequencyFactors)) read_frequency_factors(c, static_cast<size_t>(rotary / 2));
  }

  void read_scaling(ModelConfig& c) const {
    RopeScaling& s = c.rope_scaling;
    const double factor = number("rope.scaling.factor", number("rope.scale_linear", 0));
    const std::string type = m_.find_text(key("rope.scaling.type")).value_or("linear");
    if (type != "none" && type != "linear" && type != "yarn") {
      unsupported("rope scaling none, linear or yarn", type);
    }
    if (type == "none" || factor == 0 || (type == "linear" && factor == 1)) return;
    s.type = type;
    s.factor = factor;
    s.original_max_position_embeddings =
        m_.find_integer(key("rope.scaling.original_context_length")).value_or(0);
    if (type != "yarn") {
      s.original_max_position_embeddings = 0;
      return;
    }
    s.beta_fast = number("rope.scaling.yarn_beta_fast", s.beta_fast);
    s.beta_slow = number("rope.scaling.yarn_beta_slow", s.beta_slow);
    const double attention =
        number("rope.scaling.attn_factor", number("rope.scaling.yarn_attn_factor", 1));
    if (attention != 1) s.attention_factor = attention * (0.1 * std::log(factor) + 1);
    for (const char* name : {"rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor"}) {
      const double neutral = std::strstr(name, "ext") != nullptr ? 1 : 0;
      if (const double value = number(name, neutral); value != neutral) {
        unsupported(fmt::format("{} of {}", key(name), neutral), fmt::format("{}", value));
      }
    }
  }

  /// Llama 3.1's scaling is stored as what each frequency is divided by. Its parameters are those of
  /// every published model, the factor is the largest divisor; that they give the same divisors is
  /// checked.
  void read_frequency_factors(ModelConfig& c, size_t count) const {
    const GgufTensor& tensor = tensors_.at(kFrequencyFactors);
    if (tensor.type != GgufType::kF32 || tensor.shape != std::vector{static_cast<int64_t>(count)}) {
      throw_error<FormatError>("[gguf] expected {} float32 values as {}; got {} {}; {}", count,
                               kFrequencyFactors, gguf_type_name(tensor.type),
                               fmt::join(tensor.shape, "x"), m_.origin());
    }
    std::vector<float> stored(count);
    std::memcpy(stored.data(), tensor.data.data(), count * sizeof(float));
    RopeScaling s;
    s.type = "llama3";
    s.factor = decimal(static_cast<double>(*std::max_element(stored.begin(), stored.end())));
    const auto said = m_.find_integer(key("rope.scaling.original_context_length"));
    const std::vector<int64_t> candidates =
        said ? std::vector{*said} : std::vector{int64_t{8192}, c.max_position_embeddings};
    for (const int64_t original : candidates) {
      s.original_max_position_embeddings = original;
      if (original < 1 || !gives(c, s, stored)) continue;
      if (!c.rope_scaling.type.empty()) {
        unsupported("one kind of rope scaling", c.rope_scaling.type + " and " + kFrequencyFactors);
      }
      if (s.factor != 1) c.rope_scaling = s;
      return;
    }
    unsupported(fmt::format("{} of Llama 3.1's scaling (low 1, high 4)", kFrequencyFactors),
                fmt::format("others, up to {}", s.factor));
  }

  static bool gives(const ModelConfig& c, const RopeScaling& s, const std::vector<float>& stored) {
    const auto original = static_cast<double>(s.original_max_position_embeddings);
    for (size_t i = 0; i < stored.size(); ++i) {
      const double exponent = static_cast<double>(i) / static_cast<double>(stored.size());
      const double wave = 2 * std::numbers::pi * std::pow(c.rope_theta, exponent);
      double divisor = 1;
      if (wave > original / s.low_freq_factor) {
        divisor = s.factor;
      } else if (wave > original / s.high_freq_factor) {
        const double smooth =
            (original / wave - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
        divisor = 1 / ((1 - smooth) / s.factor + smooth);
      }
      // written so that a NaN is refused
      if (!(std::abs(static_cast<double>(stored[i]) - divisor) <= kFactorTolerance * divisor)) {
        return false;
      }
    }
    return true;
  }

  void read_tokens(ModelConfig& c) const {
    const auto id = [&](const char* name) {
      const std::string full = std::string("tokenizer.ggml.") + name;
      const auto value = m_.find_integer(full);
      if (value && (*value < 0 || *value >= c.vocab_size)) {
        throw_error<FormatError>("[gguf] expected {} from 0 to {}; got {}; {}", full,
                                 c.vocab_size - 1, *value, m_.origin());
      }
      return value;
    };
    c.bos_token_id = id("bos_token_id");
    if (const auto eos = id("eos_token_id")) c.eos_token_ids = {*eos};
  }

  /// That of the matrices, when all are stored alike.
  std::string stored_dtype() const {
    bool half = true, bfloat = true;
    for (const auto& [name, tensor] : tensors_) {
      if (tensor.shape.size() < 2) continue;
      half = half && tensor.type == GgufType::kF16;
      bfloat = bfloat && tensor.type == GgufType::kBf16;
    }
    return half ? "float16" : bfloat ? "bfloat16" : "float32";
  }

  const GgufMetadata& m_;
  const Tensors& tensors_;
  std::string arch_;
};

}  // namespace

ModelConfig gguf_config(const GgufMetadata& metadata, const Tensors& tensors) {
  return ConfigReader(metadata, tensors).run();
}

bool stores_tied_head(const ModelConfig& config, const Tensors& tensors) {
  if (config.model_type != "gpt2") return false;
  const auto head = tensors.find("output.weight"), embedding = tensors.find("token_embd.weight");
  return head != tensors.end() && embedding != tensors.end() &&
         head->second.type == embedding->second.type &&
         head->second.shape == embedding->second.shape &&
         std::equal(head->second.data.begin(), head->second.data.end(),
                    embedding->second.data.begin(), embedding->second.data.end());
}

}  // namespace heirloom
