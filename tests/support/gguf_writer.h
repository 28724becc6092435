// SPDX-License-Identifier: Apache-2.0
//
// GGUF images for tests: written as the format says, or wrong on request.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace heirloom::test {

template <class T>
std::string raw(T value) {
  std::string out(sizeof value, '\0');
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}

inline std::string gguf_string(std::string_view text) {
  return raw<uint64_t>(text.size()) + std::string(text);
}

class GgufWriter {
 public:
  GgufWriter& pair(std::string_view key, uint32_t type, const std::string& value) {
    pairs_ += gguf_string(key) + raw(type) + value;
    ++pair_count;
    return *this;
  }
  GgufWriter& add(std::string_view key, uint32_t value) { return pair(key, 4, raw(value)); }
  GgufWriter& add(std::string_view key, int value) {
    return add(key, static_cast<uint32_t>(value));
  }
  GgufWriter& add(std::string_view key, float value) { return pair(key, 6, raw(value)); }
  GgufWriter& add(std::string_view key, bool value) {
    return pair(key, 7, std::string(1, value ? '\1' : '\0'));
  }
  GgufWriter& add(std::string_view key, const char* value) {
    return pair(key, 8, gguf_string(value));
  }
  GgufWriter& add(std::string_view key, const std::vector<std::string>& values) {
    std::string text = raw<uint32_t>(8) + raw<uint64_t>(values.size());
    for (const std::string& v : values) text += gguf_string(v);
    return pair(key, 9, text);
  }
  template <class T>
  GgufWriter& array(std::string_view key, uint32_t type, const std::vector<T>& values) {
    std::string text = raw(type) + raw<uint64_t>(values.size());
    for (const T v : values) text += raw(v);
    return pair(key, 9, text);
  }

  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims;  ///< innermost first, as the file has them
    uint32_t type;
    uint64_t offset;
  };
  /// At the next aligned offset.
  GgufWriter& tensor(const std::string& name, std::vector<uint64_t> dims, uint32_t type,
                     const std::string& data) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    tensors.push_back({name, std::move(dims), type, data_.size()});
    data_ += data;
    return *this;
  }
  GgufWriter& floats(const std::string& name, std::vector<uint64_t> dims,
                     const std::vector<float>& values) {
    std::string data;
    for (const float v : values) data += raw(v);
    return tensor(name, std::move(dims), 0, data);
  }

  std::string image() const {
    std::string out =
        "GGUF" + raw(version) + raw<uint64_t>(tensors.size()) + raw(pair_count) + pairs_;
    for (const Tensor& t : tensors) {
      out += gguf_string(t.name) + raw(static_cast<uint32_t>(t.dims.size()));
      for (const uint64_t dim : t.dims) out += raw(dim);
      out += raw(t.type) + raw(t.offset);
    }
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    out += data_;
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out;
  }

  uint32_t version = 3;
  uint64_t alignment = 32;
  uint64_t pair_count = 0;
  std::vector<Tensor> tensors;

 private:
  std::string pairs_, data_;
};

}  // namespace heirloom::test
