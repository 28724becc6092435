// SPDX-License-Identifier: Apache-2.0
#include "heirloom/report/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <ctime>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t r = i;
    for (int bit = 0; bit < 8; ++bit) r = (r >> 1) ^ ((r & 1u) ? 0x82F63B78u : 0u);
    table[i] = r;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

/// TFRecord stores no plain CRC, so that data which holds CRCs does not get a trivial one.
uint32_t masked_crc32c(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xA282EAD8u;
}

void append_fixed(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>((value & 0x7f) | 0x80));
  out.push_back(static_cast<char>(value));
}

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void append_key(std::string& out, uint32_t field, WireType type) {
  append_varint(out, field << 3 | type);
}

void append_bytes(std::string& out, uint32_t field, std::string_view bytes) {
  append_key(out, field, kBytes);
  append_varint(out, bytes.size());
  out.append(bytes);
}

// Field numbers of tensorflow/core/util/event.proto and framework/summary.proto.
constexpr uint32_t kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5,
                   kEventSessionLog = 7;
constexpr uint32_t kSummaryValue = 1, kValueTag = 1, kValueSimpleValue = 2;
constexpr uint32_t kSessionLogStatus = 1, kSessionStart = 1;

std::string host_name() {
  std::array<char, 256> buffer{};
  if (::gethostname(buffer.data(), buffer.size() - 1) != 0 || buffer[0] == '\0') return "localhost";
  std::string name(buffer.data());
  for (char& c : name)
    if (c == '/') c = '_';
  return name;
}

fs::path free_name(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) {
    throw_error<IoError>("[tensorboard] cannot make the directory {}: {}", directory.string(),
                         error.message());
  }
  const std::string base = fmt::format("events.out.tfevents.{:010}.{}",
                                       static_cast<int64_t>(std::time(nullptr)), host_name());
  fs::path path = directory / base;
  for (int i = 1; fs::exists(path, error); ++i) path = directory / fmt::format("{}.{}", base, i);
  return path;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes)
    crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

std::string tfrecord(std::string_view payload) {
  std::string out;
  append_fixed(out, payload.size(), 8);
  append_fixed(out, masked_crc32c(out), 4);
  out.append(payload);
  append_fixed(out, masked_crc32c(payload), 4);
  return out;
}

EventWriter::EventWriter(const fs::path& directory, int64_t resume_step)
    : path_(free_name(directory)), writer_(path_) {
  std::string version;
  append_bytes(version, kEventFileVersion, "brain.Event:2");
  write_event(0, version);
  if (resume_step > 0) {
    // A session start at step n is TensorBoard's signal to discard points at n and later from
    // earlier files.
    std::string status, log;
    append_key(status, kSessionLogStatus, kVarint);
    append_varint(status, kSessionStart);
    append_bytes(log, kEventSessionLog, status);
    write_event(resume_step + 1, log);
  }
}

void EventWriter::write_event(int64_t step, std::string_view content) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  append_key(event, kEventWallTime, kFixed64);
  append_fixed(event, std::bit_cast<uint64_t>(now.count()), 8);
  append_key(event, kEventStep, kVarint);
  append_varint(event, static_cast<uint64_t>(step));
  event.append(content);
  writer_.write(tfrecord(event));
  writer_.flush();
}

void EventWriter::scalars(int64_t step,
                          std::initializer_list<std::pair<std::string_view, double>> values) {
  std::string summary;
  for (const auto& [tag, number] : values) {
    std::string value;
    append_bytes(value, kValueTag, tag);
    append_key(value, kValueSimpleValue, kFixed32);
    append_fixed(value, std::bit_cast<uint32_t>(static_cast<float>(number)), 4);
    append_bytes(summary, kSummaryValue, value);
  }
  std::string content;
  append_bytes(content, kEventSummary, summary);
  write_event(step, content);
}

void EventWriter::step(const StepReport& r) {
  scalars(r.step, {{"train/loss", r.loss}, {"train/lr", r.lr}, {"train/grad_norm", r.grad_norm}});
  if (!std::isnan(r.tokens_per_second))
    scalars(r.step, {{"speed/tokens_per_second", r.tokens_per_second}});
  if (!std::isnan(r.mfu)) scalars(r.step, {{"speed/mfu", r.mfu}});
}

void EventWriter::evaluation(int64_t step, double val_loss) {
  scalars(step, {{"validation/loss", val_loss}, {"validation/perplexity", std::exp(val_loss)}});
}

}  // namespace heirloom
