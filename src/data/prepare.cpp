// SPDX-License-Identifier: Apache-2.0
#include "heirloom/data/prepare.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <exception>
#include <utility>

#include "heirloom/core/error.h"
#include "heirloom/data/token_shard.h"

namespace heirloom {
namespace {

constexpr size_t kBatchBytesPerThread = size_t{4} << 20;
constexpr size_t kSplitPieceBytes = size_t{64} << 10;
constexpr size_t kMaxBatchPieces = size_t{1} << 16;

/// The shards of one split: finished ones keep their temporary names until all are there.
class ShardSet {
 public:
  ShardSet(fs::path out, int64_t shard_tokens, int64_t vocab_size)
      : out_(std::move(out)),
        numbered_(shard_tokens > 0),
        limit_(numbered_ ? shard_tokens : TokenShardWriter::kMaxTokens),
        vocab_size_(vocab_size) {}

  void append(std::span<const int32_t> tokens) {
    tokens_ += static_cast<int64_t>(tokens.size());
    while (!tokens.empty()) {
      if (writers_.empty() || writers_.back().tokens() == limit_) {
        if (!writers_.empty()) writers_.back().finish();
        writers_.emplace_back(name(writers_.size()), vocab_size_);
      }
      TokenShardWriter& writer = writers_.back();
      const int64_t room = limit_ - writer.tokens();
      const auto count = std::min(tokens.size(), static_cast<size_t>(room));
      writer.append(tokens.first(count));
      tokens = tokens.subspan(count);
    }
  }
  int64_t tokens() const { return tokens_; }
  void finish() {
    if (!writers_.empty()) writers_.back().finish();
  }
  std::vector<PreparedShard> commit() {
    std::vector<PreparedShard> shards;
    for (TokenShardWriter& writer : writers_) {
      writer.commit();
      shards.push_back({writer.path(), writer.tokens()});
    }
    return shards;
  }

 private:
  fs::path name(size_t number) const {
    if (!numbered_ && number == 0) return out_;
    fs::path path = out_;
    path.replace_filename(
        fmt::format("{}-{:05}{}", out_.stem().string(), number, out_.extension().string()));
    return path;
  }

  fs::path out_;
  bool numbered_;
  int64_t limit_, vocab_size_;
  int64_t tokens_ = 0;
  std::deque<TokenShardWriter> writers_;
};

struct Piece {
  std::string text;
  bool document_end = false;
  bool validation = false;
};

/// All inputs as one stream of pieces, each assigned to its split.
class PieceStream {
 public:
  explicit PieceStream(const PrepareOptions& options)
      : options_(options), reader_options_(options.text) {
    whole_files_ = options.validation_fraction > 0 && options.text.separator.empty();
    if (whole_files_)
      reader_options_.piece_bytes = std::min(reader_options_.piece_bytes, kSplitPieceBytes);
    for (const fs::path& path : options.inputs) {
      // Opened once here, so that a missing or misnamed file shows before hours of work.
      const TextReader reader(path, reader_options_);
      total_ += reader.bytes_total();
      sources_.push_back({path, reader.bytes_total(), 0, 0});
    }
  }

  bool next(Piece& piece) {
    while (index_ < options_.inputs.size()) {
      if (!reader_) reader_.emplace(options_.inputs[index_], reader_options_);
      TextPiece text;
      if (reader_->next(text)) {
        const bool unit_start = whole_files_ || document_start_;
        if (unit_start) {
          validation_ = in_validation(units_);
          ++units_;
        }
        document_start_ = text.document_end;
        Source& source = sources_[index_];
        source.documents += text.document_end ? 1 : 0;
        source.text_bytes += static_cast<int64_t>(text.text.size());
        piece = {std::move(text.text), text.document_end, validation_};
        return true;
      }
      done_ += reader_->bytes_consumed();
      reader_.reset();
      ++index_;
    }
    return false;
  }

  int64_t bytes_read() const { return done_ + (reader_ ? reader_->bytes_consumed() : 0); }
  int64_t bytes_total() const { return total_; }
  Json sources() const {
    Json list = Json::array();
    for (const Source& source : sources_) {
      list.push_back({{"path", source.path.string()},
                      {"bytes", source.bytes},
                      {"documents", source.documents},
                      {"text_bytes", source.text_bytes}});
    }
    return list;
  }

 private:
  struct Source {
    fs::path path;
    int64_t bytes, documents, text_bytes;
  };

  bool in_validation(int64_t unit) const {
    const double f = options_.validation_fraction;
    const auto d = static_cast<double>(unit);
    return std::floor((d + 1) * f) > std::floor(d * f);
  }

  const PrepareOptions& options_;
  TextReaderOptions reader_options_;
  bool whole_files_ = false;
  std::vector<Source> sources_;
  std::optional<TextReader> reader_;
  size_t index_ = 0;
  int64_t units_ = 0, done_ = 0, total_ = 0;
  bool document_start_ = true, validation_ = false;
};

void check_options(const PrepareOptions& options) {
  HEIRLOOM_CHECK(!options.inputs.empty() && !options.out.empty(),
                 "[data] expected input files and an output; got none");
  HEIRLOOM_CHECK(options.validation_fraction >= 0 && options.validation_fraction < 1,
                 "[data] expected a validation fraction in [0, 1); got {}",
                 options.validation_fraction);
  HEIRLOOM_CHECK(
      (options.validation_fraction > 0) == !options.validation_out.empty(),
      "[data] expected a validation fraction and an output for it together; got one of them");
  HEIRLOOM_CHECK(options.validation_out != options.out, "[data] expected two outputs; got {} twice",
                 options.out.string());
  HEIRLOOM_CHECK(options.shard_tokens >= 0 && options.shard_tokens <= TokenShardWriter::kMaxTokens,
                 "[data] expected 1 to {} tokens per shard; got {}", TokenShardWriter::kMaxTokens,
                 options.shard_tokens);
  HEIRLOOM_CHECK(!options.end_of_text ||
                     (*options.end_of_text >= 0 && *options.end_of_text < options.vocab_size),
                 "[data] expected an end-of-text id below {}; got {}", options.vocab_size,
                 *options.end_of_text);
  HEIRLOOM_CHECK(options.threads >= 0, "[data] expected a number of threads; got {}",
                 options.threads);
}

/// encode of every piece, in parallel; the first error in piece order is thrown.
std::vector<std::vector<int32_t>> encode_all(const std::vector<Piece>& pieces,
                                             const EncodeText& encode, int threads) {
  std::vector<std::vector<int32_t>> ids(pieces.size());
  std::vector<std::exception_ptr> errors(pieces.size());
  const auto count = static_cast<int64_t>(pieces.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    try {
      ids[at] = encode(pieces[at].text);
    } catch (...) {
      errors[at] = std::current_exception();
    }
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return ids;
}

Json split_json(const PreparedSplit& split) {
  Json shards = Json::array();
  for (const PreparedShard& shard : split.shards) {
    shards.push_back({{"file", shard.path.filename().string()}, {"tokens", shard.tokens}});
  }
  return {{"documents", split.documents},
          {"text_bytes", split.text_bytes},
          {"tokens", split.tokens},
          {"shards", shards}};
}

}  // namespace

PrepareResult prepare_shards(const PrepareOptions& options, const EncodeText& encode,
                             const std::function<void(const PrepareProgress&)>& progress,
                             const std::function<bool()>& stop) {
  check_options(options);
  const int threads = options.threads > 0 ? options.threads : omp_get_max_threads();
  const size_t batch_bytes = kBatchBytesPerThread * static_cast<size_t>(threads);
  PieceStream stream(options);
  ShardSet train(options.out, options.shard_tokens, options.vocab_size);
  ShardSet validation(options.validation_out, options.shard_tokens, options.vocab_size);
  PrepareResult result;

  std::vector<Piece> pieces;
  for (bool more = true; more;) {
    pieces.clear();
    size_t bytes = 0;
    Piece piece;
    while (bytes < batch_bytes && pieces.size() < kMaxBatchPieces && (more = stream.next(piece))) {
      bytes += piece.text.size();
      pieces.push_back(std::move(piece));
    }
    std::vector<std::vector<int32_t>> ids = encode_all(pieces, encode, threads);
    for (size_t i = 0; i < pieces.size(); ++i) {
      PreparedSplit& split = pieces[i].validation ? result.validation : result.train;
      if (pieces[i].document_end && options.end_of_text) ids[i].push_back(*options.end_of_text);
      (pieces[i].validation ? validation : train).append(ids[i]);
      split.documents += pieces[i].document_end ? 1 : 0;
      split.text_bytes += static_cast<int64_t>(pieces[i].text.size());
    }
    if (progress) {
      progress({stream.bytes_read(), stream.bytes_total(),
                result.train.documents + result.validation.documents,
                result.train.text_bytes + result.validation.text_bytes,
                train.tokens() + validation.tokens()});
    }
    if (stop && stop()) {
      result.stopped = true;
      return result;
    }
  }
  result.train.tokens = train.tokens();
  result.validation.tokens = validation.tokens();
  if (train.tokens() == 0 || (options.validation_fraction > 0 && validation.tokens() == 0)) {
    throw_error<FormatError>(
        "[data] expected text for every split; got {} training and {} validation tokens; {}; give "
        "more documents "
        "or another validation fraction",
        train.tokens(), validation.tokens(), options.inputs[0].string());
  }
  train.finish();
  validation.finish();
  result.train.shards = train.commit();
  result.validation.shards = validation.commit();

  Json manifest = {
      {"tokenizer", options.tokenizer},
      {"tokenizer_hash", options.tokenizer_hash},
      {"vocab_size", options.vocab_size},
      {"token_bytes", TokenShard(result.train.shards[0].path).token_bytes()},
      {"end_of_text", options.end_of_text ? Json(*options.end_of_text) : Json(nullptr)},
      {"separator", options.text.separator},
      {"sources", stream.sources()},
      {"train", split_json(result.train)}};
  if (options.validation_fraction > 0) {
    manifest["validation_fraction"] = options.validation_fraction;
    manifest["validation"] = split_json(result.validation);
  }
  result.manifest = options.out;
  result.manifest += ".json";
  write_file_atomically(result.manifest, dump_json(manifest, 2) + "\n");
  return result;
}

}  // namespace heirloom
