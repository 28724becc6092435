// SPDX-License-Identifier: Apache-2.0
#include "heirloom/data/token_shard.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "heirloom/core/error.h"
#include "heirloom/data/token_dataset.h"
#include "io/temporary_directory.h"

namespace heirloom {
namespace {

using test::TemporaryDirectory;

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string header(int32_t magic, int32_t version, int32_t count) {
  std::vector<int32_t> h(256, 0);
  h[0] = magic, h[1] = version, h[2] = count;
  return raw(h);
}

std::string problem(const std::function<void()>& body) {
  try {
    body();
  } catch (const FormatError& e) {
    return e.what();
  }
  return "";
}

TEST(TokenShard, ReadsTheThreeForms) {
  const TemporaryDirectory dir;
  write_file_atomically(dir / "a", header(20240520, 1, 3) + raw<uint16_t>({1, 2, 65535}));
  write_file_atomically(dir / "b", header(20240801, 7, 2) + raw<uint32_t>({128000, 7}));
  write_file_atomically(dir / "c.bin", raw<uint16_t>({9, 65535}));
  const TokenShard a(dir / "a"), b(dir / "b"), c(dir / "c.bin");
  EXPECT_EQ(a.form(), ShardForm::kUint16);
  EXPECT_EQ(b.form(), ShardForm::kUint32);
  EXPECT_EQ(c.form(), ShardForm::kHeaderless);
  EXPECT_EQ(a.size(), 3);
  EXPECT_EQ(a.at(2), 65535u);
  EXPECT_EQ(b.size(), 2);
  EXPECT_EQ(b.at(0), 128000u);
  EXPECT_EQ(b.token_bytes(), 4);
  EXPECT_EQ(c.size(), 2);
  EXPECT_EQ(c.at(1), 65535u);
  std::vector<int32_t> out(2);
  a.copy(1, out);
  EXPECT_EQ(out, (std::vector<int32_t>{2, 65535}));
  EXPECT_THROW(a.copy(2, out), ArgumentError);
  EXPECT_THROW(a.copy(-1, out), ArgumentError);
  EXPECT_THROW(a.copy(INT64_MAX, out), ArgumentError);
  EXPECT_THROW(a.at(3), ArgumentError);
}

TEST(TokenShard, RefusesAnythingElseSayingWhatItFound) {
  const TemporaryDirectory dir;
  const auto refused = [&](const std::string& name, const std::string& bytes,
                           const std::string& part) {
    write_file_atomically(dir / name, bytes);
    const std::string message = problem([&] { TokenShard{dir / name}; });
    EXPECT_NE(message.find(part), std::string::npos) << name << ": " << message;
    EXPECT_NE(message.find(name), std::string::npos) << message;
  };
  refused("truncated header.bin", header(20240520, 1, 0).substr(0, 1020), "truncated");
  refused("truncated", header(20240520, 1, 3) + "12345", "truncated");
  refused("long", header(20240520, 1, 1) + "123", "1026");
  refused("negative", header(20240520, 1, -1), "-1 tokens");
  refused("huge", header(20240801, 7, INT32_MAX), "2147483647 tokens");
  refused("version", header(20240520, 7, 0), "version 1");
  refused("version of uint32", header(20240801, 1, 0), "version 7");
  refused("empty.bin", "", "0 bytes");
  refused("odd.bin", "123", "3 bytes");
  refused("headerless.txt", "1234", "magic 875770417");
  refused("empty", "", "magic");
  refused("model.bin", header(20240326, 3, 0), "20240326");
  refused("weights.bin", "GGUF1234", "GGUF");
  EXPECT_THROW(TokenShard(dir / "absent"), IoError);
}

TEST(TokenShardWriter, WritesWhatTheReaderReads) {
  const TemporaryDirectory dir;
  for (const int64_t vocab : {int64_t{65536}, int64_t{65537}}) {
    std::vector<int32_t> tokens(100'000);
    for (size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<int32_t>(static_cast<int64_t>(i) * 7919 % vocab);
    tokens[5] = static_cast<int32_t>(vocab - 1);
    TokenShardWriter writer(dir / "s", vocab);
    writer.append(std::span(tokens).first(3));
    writer.append({});
    writer.append(std::span(tokens).subspan(3));
    EXPECT_EQ(writer.tokens(), 100'000);
    writer.commit();
    const TokenShard shard(dir / "s");
    EXPECT_EQ(shard.form(), vocab == 65536 ? ShardForm::kUint16 : ShardForm::kUint32);
    std::vector<int32_t> back(tokens.size());
    shard.copy(0, back);
    EXPECT_EQ(back, tokens);
  }
}

TEST(TokenShardWriter, RefusesForeignIdsAndLeavesNothing) {
  const TemporaryDirectory dir;
  {
    TokenShardWriter writer(dir / "s", 10);
    EXPECT_THROW(writer.append(std::vector<int32_t>{10}), ArgumentError);
    EXPECT_THROW(writer.append(std::vector<int32_t>{-1}), ArgumentError);
    EXPECT_EQ(writer.tokens(), 0);
    writer.append(std::vector<int32_t>{9});
    writer.finish();
    EXPECT_THROW(writer.append(std::vector<int32_t>{1}), ArgumentError);
  }
  EXPECT_TRUE(dir.names().empty());
  EXPECT_THROW(TokenShardWriter(dir / "s", 0), ArgumentError);
  EXPECT_TRUE(dir.names().empty());
}

TEST(TokenDataset, SequencesShareTheirEndsAndStayInTheirShard) {
  const TemporaryDirectory dir;
  const auto shard = [&](const std::string& name, size_t count, uint16_t first) {
    std::vector<uint16_t> tokens(count);
    std::iota(tokens.begin(), tokens.end(), first);
    write_file_atomically(dir / name, raw(tokens));
    return dir / name;
  };
  // 12 tokens: floor(11 / 4) = 2 sequences; 13: 3; 5: 1.
  const TokenDataset data({shard("a.bin", 12, 0), shard("b.bin", 13, 100), shard("c.bin", 5, 200)},
                          4, 1000);
  EXPECT_EQ(data.sequences(), 6);
  EXPECT_EQ(data.tokens(), 30);
  const std::vector<int32_t> firsts = {0, 4, 100, 104, 108, 200};
  for (size_t k = 0; k < firsts.size(); ++k) {
    std::vector<int32_t> out(5), expected(5);
    std::iota(expected.begin(), expected.end(), firsts[k]);
    data.fetch(static_cast<int64_t>(k), out);
    EXPECT_EQ(out, expected) << k;
  }
  std::vector<int32_t> out(5), small(4);
  EXPECT_THROW(data.fetch(6, out), ArgumentError);
  EXPECT_THROW(data.fetch(-1, out), ArgumentError);
  EXPECT_THROW(data.fetch(0, small), ArgumentError);
}

TEST(TokenDataset, ShortShardsAndForeignTokensAreFormatErrors) {
  const TemporaryDirectory dir;
  write_file_atomically(dir / "a.bin", raw<uint16_t>({1, 2, 3, 4, 50, 6, 7, 8, 9}));
  const std::string too_short = problem([&] { TokenDataset({dir / "a.bin"}, 9, 100); });
  EXPECT_NE(too_short.find("at least 10 tokens"), std::string::npos) << too_short;
  EXPECT_EQ(problem([&] { TokenDataset({dir / "a.bin"}, 8, 100); }), "");
  EXPECT_THROW(TokenDataset({}, 8, 100), ArgumentError);
  EXPECT_THROW(TokenDataset({dir / "a.bin"}, 0, 100), ArgumentError);

  const TokenDataset data({dir / "a.bin"}, 3, 50);  // sequences [0, 3] and [3, 6]
  std::vector<int32_t> out(4);
  EXPECT_NO_THROW(data.fetch(0, out));
  const std::string foreign = problem([&] { data.fetch(1, out); });
  EXPECT_NE(foreign.find("got 50 at position 4"), std::string::npos) << foreign;
  EXPECT_NE(foreign.find("a.bin"), std::string::npos) << foreign;

  write_file_atomically(dir / "b", header(20240801, 7, 2) + raw<uint32_t>({0, 0xFFFFFFFFu}));
  const TokenDataset wide({dir / "b"}, 1, 50);
  const std::string negative = problem([&] { wide.fetch(0, std::span(out).first(2)); });
  EXPECT_NE(negative.find("got 4294967295 at position 1"), std::string::npos) << negative;
}

}  // namespace
}  // namespace heirloom
