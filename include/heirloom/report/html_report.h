// SPDX-License-Identifier: Apache-2.0
//
// The report of a run, or of several side by side: one HTML file with inline SVG charts that needs
// nothing from outside, can be mailed and opened in ten years. Every text it is given is escaped; a
// content security policy forbids loading anything.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "heirloom/io/json.h"

namespace heirloom {

/// The curves of one run: the lines of its metrics.jsonl (read_metrics). Step lines have "loss",
/// evaluation lines "val_loss"; a key that is missing, null or not a number is a point that is not
/// drawn.
struct RunSeries {
  std::string name;
  std::vector<Json> metrics;
};

/// Rows may be shorter than `columns`. A column whose cells all start like numbers is set flush
/// right.
struct NamedTable {
  std::string title;
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
  std::string note;  ///< one line below the table; may be empty
};

struct Sample {
  int64_t step = 0;
  std::string prompt;
  std::string text;  ///< the continuation
};

/// A level that the loss charts show as a dashed line: the loss of the model that an uptraining run
/// started from.
struct ReferenceLine {
  std::string name;
  double value = 0.0;
};

struct RunReport {
  std::string title;
  std::string subtitle;         ///< one line: device, dtype, parameters, date; may be empty
  std::vector<RunSeries> runs;  ///< one, or several to compare: then their curves are overlaid
  Json config;                  ///< the resolved config; null leaves it out
  Json kv;  ///< what `heirloom kv --json` prints (scheme, streams, ...); null leaves it out
  std::vector<NamedTable> tables;  ///< model summary, parameters, memory plan
  std::vector<Sample> samples;     ///< oldest first
  std::vector<ReferenceLine> reference_lines;
};

/// The whole page. A run without metrics gives a page that says so. Curves longer than 1000 points
/// are thinned so that every minimum and maximum of a bucket is kept.
std::string render_html(const RunReport& report);

}  // namespace heirloom
