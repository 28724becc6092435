// SPDX-License-Identifier: Apache-2.0
//
// Where weights come from, under this project's tensor names (those of `heirloom` and `llama`
// models, rows = outputs), whatever file holds them: a Hugging Face directory of any family, GGUF,
// llama2.c. A family's own names and layouts are a table of places, used for reading and writing
// alike.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "heirloom/io/safetensors.h"
#include "heirloom/model/config.h"
#include "heirloom/nn/parameter_store.h"

namespace heirloom {

/// Name and shape of a tensor of ours: one slice of a parameter, as a checkpoint stores it.
struct TensorShape {
  std::string name;
  std::vector<int64_t> shape;  ///< (rows, columns) or (rows)
  int64_t rows() const { return shape[0]; }
  int64_t columns() const { return shape.size() == 2 ? shape[1] : 1; }
};
std::vector<TensorShape> tensor_shapes(const ParameterStore& parameters);
/// Of the model that a config describes (nothing is allocated).
std::vector<TensorShape> tensor_shapes(const ModelConfig& config);

/// Where a tensor of ours lies in a file.
struct TensorPlace {
  std::string tensor;  ///< name of the file's tensor that holds it, alone or with others
  /// The row of the file's tensor that holds our row; empty: they lie in order, from row `begin`.
  std::function<int64_t(int64_t row)> row;
  int64_t begin = 0;
  bool transposed = false;  ///< the file's tensor is (in, out), as GPT-2's are
};

/// A tensor of a file and the tensors of ours that it holds.
struct FileTensor {
  struct Part {
    TensorShape ours;
    TensorPlace place;
    int64_t row(int64_t r) const { return place.row ? place.row(r) : place.begin + r; }
  };
  std::string name;
  std::vector<int64_t> shape;  ///< as in the file
  bool transposed = false;
  std::vector<Part> parts;
  /// The file's tensor is the one part as it is.
  bool plain() const;
  /// InternalError unless every row of the file's tensor belongs to exactly one part. It goes over
  /// all of them: a reader first holds the shape, which a config may make up, to the file's.
  void check_rows() const;
};

using PlaceFunction = std::function<TensorPlace(const TensorShape& ours)>;
/// The file's tensors for `ours`, in the order in which their first parts stand there.
std::vector<FileTensor> file_tensors(const std::vector<TensorShape>& ours,
                                     const PlaceFunction& place);
/// By the places of the config's family.
std::vector<FileTensor> file_tensors(const ModelConfig& config,
                                     const std::vector<TensorShape>& ours);

/// Puts a file's tensor together, elements of `size` bytes: `part(name, out)` must call out(pointer,
/// bytes) for the elements of our tensor of that name, front to back.
using ElementsOut = std::function<void(const void*, size_t)>;
void write_assembled(const FileTensor& tensor, size_t size,
                     const std::function<void(const std::string& name, const ElementsOut&)>& part,
                     const ElementsOut& out);

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// Shape of every tensor there is, under our names, and the safetensors dtype that `read` gives
  /// ("F32", "F16", "BF16", "F64").
  struct Entry {
    std::vector<int64_t> shape;
    std::string dtype;
  };
  virtual const std::map<std::string, Entry>& entries() const = 0;
  /// The elements of a tensor, row-major: of the mapped file where they lie there as they are, else
  /// in `buffer`. Not aligned. Values keep their bits; quantised ones are F32, exactly what their
  /// block stands for.
  virtual std::span<const std::byte> read(const std::string& name,
                                          std::vector<std::byte>& buffer) const = 0;
  virtual std::string origin() const = 0;  ///< the file or directory, for messages
};

/// The weights of a model directory. A missing or additional tensor, one of another shape, or a
/// dtype that is no weight's is a FormatError that names it. Buffers that old files carry (rope
/// tables, attention masks, a tied head) are passed over.
std::unique_ptr<WeightSource> open_weights(const fs::path& directory, const ModelConfig& config);

/// What safetensors calls a config's dtype ("bfloat16": "BF16"), and back.
const char* stored_dtype(std::string_view config);
const char* config_dtype(std::string_view stored);

/// Bytes of elements that lie in a file as `dtype` (a WeightSource's), as float64 values.
void to_doubles(std::string_view dtype, std::span<const std::byte> elements, double* out);
/// Float64 values rounded to nearest as `dtype` stores them.
void from_doubles(std::string_view dtype, std::span<const double> values, std::byte* out);

}  // namespace heirloom
