// SPDX-License-Identifier: Apache-2.0
//
// Scalar curves for TensorBoard: a file of TFRecords, each one Event message in protocol buffer
// encoding. Written by hand, since the few fields used here do not need a protocol buffer library.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "heirloom/io/file.h"
#include "heirloom/report/progress.h"

namespace heirloom {

/// CRC-32C (Castagnoli: reflected polynomial 0x82F63B78), initial value and final xor 0xFFFFFFFF.
uint32_t crc32c(std::string_view bytes);

/// A TFRecord's frame around `payload`: u64 length, its masked CRC, the payload, its masked CRC;
/// little-endian.
std::string tfrecord(std::string_view payload);

class EventWriter {
 public:
  /// Opens a new file `directory/events.out.tfevents.<unix time>.<host>`, with a number behind
  /// where that name is taken; the directory is made where missing. A run resumed after step S
  /// passes `resume_step` = S: TensorBoard then forgets what earlier files of the directory say
  /// about later steps.
  explicit EventWriter(const fs::path& directory, int64_t resume_step = 0);

  /// One point of one or several curves. Every call's record has reached the operating system when
  /// it returns.
  void scalars(int64_t step, std::initializer_list<std::pair<std::string_view, double>> values);

  /// train/loss, train/lr, train/grad_norm; speed/tokens_per_second and speed/mfu where known.
  void step(const StepReport& report);
  /// validation/loss, validation/perplexity.
  void evaluation(int64_t step, double val_loss);

  const fs::path& path() const { return path_; }
  void finish() { writer_.finish(); }  ///< makes the file durable and closes it

 private:
  void write_event(int64_t step, std::string_view content);

  fs::path path_;
  FileWriter writer_;
};

}  // namespace heirloom
