// SPDX-License-Identifier: Apache-2.0
#include "heirloom/data/prepare.h"

#include <gtest/gtest.h>

#include <atomic>

#include "heirloom/core/error.h"
#include "heirloom/data/token_shard.h"
#include "io/temporary_directory.h"

namespace heirloom {
namespace {

using test::TemporaryDirectory;

/// A tokenizer of bytes: ids 0..255, 256 ends a document.
std::vector<int32_t> encode_bytes(std::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

std::string decode(const fs::path& path) {
  const TokenShard shard(path);
  std::string text;
  for (int64_t i = 0; i < shard.size(); ++i) {
    text += shard.at(i) == 256 ? '|' : static_cast<char>(shard.at(i));
  }
  return text;
}

PrepareOptions base(const TemporaryDirectory& dir) {
  write_file_atomically(dir / "a.txt", "one\n<s>\ntwo\n<s>\nthree\n");
  write_file_atomically(dir / "b.jsonl", "{\"text\": \"four\"}\n{\"text\": \"five\"}\n");
  PrepareOptions options;
  options.inputs = {dir / "a.txt", dir / "b.jsonl"};
  options.text.separator = "<s>";
  options.out = dir / "out.bin";
  options.vocab_size = 257;
  options.end_of_text = 256;
  options.threads = 2;
  options.tokenizer = "bytes";
  options.tokenizer_hash = "0123";
  return options;
}

TEST(Prepare, WritesDocumentsInOrderWithAManifest) {
  const TemporaryDirectory dir;
  const PrepareOptions options = base(dir);
  PrepareProgress last;
  const PrepareResult result = prepare_shards(
      options, encode_bytes, [&](const PrepareProgress& progress) { last = progress; });
  EXPECT_EQ(decode(dir / "out.bin"), "one|two|three|four|five|");
  EXPECT_EQ(result.train.tokens, 24);
  EXPECT_EQ(result.train.documents, 5);
  EXPECT_EQ(result.train.text_bytes, 19);
  EXPECT_EQ(last.bytes_read, last.bytes_total);
  EXPECT_EQ(last.tokens, 24);
  const Json manifest = read_json_file((dir / "out.bin.json").string());
  EXPECT_EQ(manifest["tokenizer_hash"], "0123");
  EXPECT_EQ(manifest["train"]["tokens"], 24);
  EXPECT_EQ(manifest["train"]["shards"][0]["file"], "out.bin");
  EXPECT_EQ(manifest["sources"][1]["documents"], 2);
  EXPECT_EQ(manifest["end_of_text"], 256);
  EXPECT_EQ(dir.names(), (std::set<std::string>{"a.txt", "b.jsonl", "out.bin", "out.bin.json"}));
}

TEST(Prepare, WithoutEndOfTextAndWithManyShards) {
  const TemporaryDirectory dir;
  PrepareOptions options = base(dir);
  options.end_of_text.reset();
  options.shard_tokens = 8;
  const PrepareResult result = prepare_shards(options, encode_bytes);
  ASSERT_EQ(result.train.shards.size(), 3u);
  EXPECT_EQ(decode(dir / "out-00000.bin"), "onetwoth");
  EXPECT_EQ(decode(dir / "out-00001.bin"), "reefourf");
  EXPECT_EQ(decode(dir / "out-00002.bin"), "ive");
  EXPECT_FALSE(fs::exists(dir / "out.bin"));
}

TEST(Prepare, ValidationTakesAnEvenShareOfDocuments) {
  const TemporaryDirectory dir;
  PrepareOptions options = base(dir);
  options.validation_fraction = 0.4;
  options.validation_out = dir / "val.bin";
  const PrepareResult result = prepare_shards(options, encode_bytes);
  // floor((d + 1) 0.4) grows at d = 2 and d = 4.
  EXPECT_EQ(decode(dir / "out.bin"), "one|two|four|");
  EXPECT_EQ(decode(dir / "val.bin"), "three|five|");
  EXPECT_EQ(result.validation.documents, 2);
  options.validation_fraction = 0.01;
  options.out = dir / "other.bin";
  options.validation_out = dir / "other_val.bin";
  EXPECT_THROW(prepare_shards(options, encode_bytes), FormatError);
  EXPECT_FALSE(fs::exists(dir / "other.bin"));
}

TEST(Prepare, AFileWithoutSeparatorsIsSplitByPieces) {
  const TemporaryDirectory dir;
  PrepareOptions options = base(dir);
  std::string text;
  while (text.size() < (1 << 20)) text += "some words on a line\n";
  write_file_atomically(dir / "long.txt", text);
  options.inputs = {dir / "long.txt"};
  options.text.separator.clear();
  options.validation_fraction = 0.25;
  options.validation_out = dir / "val.bin";
  const PrepareResult result = prepare_shards(options, encode_bytes);
  EXPECT_EQ(result.train.text_bytes + result.validation.text_bytes,
            static_cast<int64_t>(text.size()));
  EXPECT_NEAR(static_cast<double>(result.validation.text_bytes) / static_cast<double>(text.size()),
              0.25, 0.07);
}

TEST(Prepare, ThreadsChangeNothing) {
  const TemporaryDirectory dir;
  PrepareOptions options = base(dir);
  std::string lines;
  for (int i = 0; i < 20'000; ++i)
    lines += fmt::format("{{\"text\": \"document {} {}\"}}\n", i,
                         std::string(static_cast<size_t>(i % 700), 'x'));
  write_file_atomically(dir / "many.jsonl", lines);
  options.inputs = {dir / "many.jsonl"};
  std::vector<std::string> results;
  for (const int threads : {1, 3}) {
    options.threads = threads;
    int batches = 0;
    prepare_shards(options, encode_bytes, [&](const PrepareProgress&) { ++batches; });
    if (threads == 1) {
      EXPECT_GE(batches, 2);
    }
    results.push_back(read_file(dir / "out.bin"));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_GT(results[0].size(), 10'000'000u);
}

TEST(Prepare, ErrorsAndStopsLeaveNothing) {
  const TemporaryDirectory dir;
  PrepareOptions options = base(dir);
  options.shard_tokens = 2;
  const auto outputs = [&] {
    std::set<std::string> names = dir.names();
    for (const char* input : {"a.txt", "b.jsonl"}) names.erase(input);
    return names;
  };
  EXPECT_TRUE(prepare_shards(options, encode_bytes, {}, [] { return true; }).stopped);
  EXPECT_TRUE(outputs().empty());
  std::atomic<int> calls{0};
  const auto failing = [&](std::string_view text) {
    if (++calls == 4) throw FormatError("no");
    return encode_bytes(text);
  };
  EXPECT_THROW(prepare_shards(options, failing), FormatError);
  EXPECT_TRUE(outputs().empty());
  options.vocab_size = 100;
  options.end_of_text = 99;
  EXPECT_THROW(prepare_shards(options, encode_bytes), ArgumentError);
  EXPECT_TRUE(outputs().empty());
  options = base(dir);
  write_file_atomically(dir / "b.jsonl", "{\"text\": \"x\"}\n{\"text\": 1}\n");
  EXPECT_THROW(prepare_shards(options, encode_bytes), FormatError);
  EXPECT_TRUE(outputs().empty());
}

TEST(Prepare, ChecksItsOptions) {
  const TemporaryDirectory dir;
  const auto refused = [&](const std::function<void(PrepareOptions&)>& change) {
    PrepareOptions options = base(dir);
    change(options);
    EXPECT_THROW(prepare_shards(options, encode_bytes), ArgumentError);
  };
  refused([](auto& o) { o.inputs.clear(); });
  refused([](auto& o) { o.out.clear(); });
  refused([](auto& o) { o.validation_fraction = 0.5; });
  refused([](auto& o) { o.validation_fraction = 1.0, o.validation_out = "v.bin"; });
  refused([](auto& o) { o.validation_fraction = 0.5, o.validation_out = o.out; });
  refused([](auto& o) { o.shard_tokens = -1; });
  refused([](auto& o) { o.end_of_text = 257; });
  PrepareOptions options = base(dir);
  options.inputs.push_back(dir / "absent.txt");
  EXPECT_THROW(prepare_shards(options, encode_bytes), IoError);
}

}  // namespace
}  // namespace heirloom
