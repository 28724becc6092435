// SPDX-License-Identifier: Apache-2.0
#include "heirloom/report/tensorboard.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <ctime>
#include <map>
#include <optional>
#include <stdexcept>
#include <vector>

namespace heirloom {
namespace {

/// CRC-32C bit by bit, without a table.
uint32_t crc_by_bits(const std::string& bytes) {
  uint32_t crc = ~0u;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int i = 0; i < 8; ++i) crc = crc & 1 ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
  }
  return ~crc;
}

template <class T>
T take(std::string& in) {
  if (in.size() < sizeof(T)) throw std::runtime_error("short read");
  T value;
  std::memcpy(&value, in.data(), sizeof(T));
  in.erase(0, sizeof(T));
  return value;
}

std::string take_string(std::string& in, uint64_t size) {
  if (in.size() < size) throw std::runtime_error("short read");
  std::string out = in.substr(0, size);
  in.erase(0, size);
  return out;
}

uint64_t take_varint(std::string& in) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const auto byte = take<uint8_t>(in);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  throw std::runtime_error("varint too long");
}

/// A message as field number -> raw contents, in order (varints and fixed values as 8 bytes of
/// little-endian).
std::multimap<uint64_t, std::string> decode_message(std::string in) {
  std::multimap<uint64_t, std::string> fields;
  while (!in.empty()) {
    const uint64_t key = take_varint(in);
    std::string value;
    switch (key & 7) {
      case 0: {
        const uint64_t v = take_varint(in);
        value.assign(reinterpret_cast<const char*>(&v), 8);
        break;
      }
      case 1:
        value = take_string(in, 8);
        break;
      case 2:
        value = take_string(in, take_varint(in));
        break;
      case 5:
        value = take_string(in, 4);
        break;
      default:
        throw std::runtime_error("wire type");
    }
    fields.emplace(key >> 3, value);
  }
  return fields;
}

std::vector<std::string> decode_records(std::string in) {
  std::vector<std::string> payloads;
  const auto check = [](const std::string& bytes, uint32_t masked) {
    const uint32_t rotated = masked - 0xA282EAD8u;
    EXPECT_EQ((rotated >> 17) | (rotated << 15), crc_by_bits(bytes));
  };
  while (!in.empty()) {
    const std::string length_bytes = in.substr(0, 8);
    const auto length = take<uint64_t>(in);
    check(length_bytes, take<uint32_t>(in));
    payloads.push_back(take_string(in, length));
    check(payloads.back(), take<uint32_t>(in));
  }
  return payloads;
}

template <class T>
T as(const std::string& bytes) {
  std::string copy = bytes;
  return take<T>(copy);
}

struct Event {
  double wall_time = 0;
  int64_t step = 0;
  std::string version;
  std::optional<uint64_t> session_status;
  std::vector<std::pair<std::string, float>> values;
};

std::vector<Event> decode_events(const fs::path& path) {
  std::vector<Event> events;
  for (const std::string& payload : decode_records(read_file(path))) {
    Event event;
    for (const auto& [field, bytes] : decode_message(payload)) {
      if (field == 1) event.wall_time = as<double>(bytes);
      if (field == 2) event.step = as<int64_t>(bytes);
      if (field == 3) event.version = bytes;
      if (field == 7) event.session_status = as<uint64_t>(decode_message(bytes).find(1)->second);
      if (field != 5) continue;
      for (const auto& [value_field, value] : decode_message(bytes)) {
        EXPECT_EQ(value_field, 1u);
        const auto parts = decode_message(value);
        event.values.emplace_back(parts.find(1)->second, as<float>(parts.find(2)->second));
      }
    }
    events.push_back(event);
  }
  return events;
}

class TensorBoardTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() /
                 (std::string("heirloom_events_") +
                  ::testing::UnitTest::GetInstance()->current_test_info()->name() + "_" +
                  std::to_string(::getpid()));
  }
  void TearDown() override { fs::remove_all(directory_); }
  fs::path directory_;
};

TEST(Crc32c, KnownVectors) {
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  // RFC 3720, appendix B.4.
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43u);
  std::string rising;
  for (int i = 0; i < 32; ++i) rising.push_back(static_cast<char>(i));
  EXPECT_EQ(crc32c(rising), 0x46DD794Eu);
}

TEST_F(TensorBoardTest, StartsWithTheVersionAndHoldsWhatWasWritten) {
  EventWriter writer(directory_ / "nested");
  StepReport r;
  r.step = 300;
  r.loss = 2.5;
  r.lr = 1e-3;
  r.grad_norm = std::nan("");
  r.tokens_per_second = 1e6;
  writer.step(r);
  writer.evaluation(301, 2.0);
  writer.scalars(int64_t{1} << 40, {{std::string(200, 'x'), -1.0}});
  const std::vector<Event> events = decode_events(writer.path());
  ASSERT_EQ(events.size(), 5u);
  EXPECT_EQ(events[0].version, "brain.Event:2");
  EXPECT_NEAR(events[0].wall_time, static_cast<double>(std::time(nullptr)), 60.0);
  EXPECT_FALSE(events[0].session_status.has_value());

  EXPECT_EQ(events[1].step, 300);
  ASSERT_EQ(events[1].values.size(), 3u);
  EXPECT_EQ(events[1].values[0], (std::pair<std::string, float>{"train/loss", 2.5f}));
  EXPECT_EQ(events[1].values[1], (std::pair<std::string, float>{"train/lr", 1e-3f}));
  EXPECT_EQ(events[1].values[2].first, "train/grad_norm");
  EXPECT_TRUE(std::isnan(events[1].values[2].second));
  ASSERT_EQ(events[2].values.size(), 1u);
  EXPECT_EQ(events[2].values[0].first, "speed/tokens_per_second");

  EXPECT_EQ(events[3].step, 301);
  EXPECT_EQ(events[3].values[1].first, "validation/perplexity");
  EXPECT_FLOAT_EQ(events[3].values[1].second, std::exp(2.0f));
  EXPECT_EQ(events[4].step, int64_t{1} << 40);
  EXPECT_EQ(events[4].values[0].first.size(), 200u);
}

TEST_F(TensorBoardTest, AResumedRunOpensANewFileThatPurgesLaterSteps) {
  EventWriter first(directory_);
  EventWriter second(directory_, 250);
  EXPECT_NE(first.path(), second.path());
  for (const EventWriter* writer : {&first, &second})
    EXPECT_EQ(writer->path().filename().string().find("events.out.tfevents."), 0u);
  const std::vector<Event> events = decode_events(second.path());
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[1].step, 251);
  EXPECT_EQ(events[1].session_status, 1u);  // SessionLog.START
}

}  // namespace
}  // namespace heirloom
