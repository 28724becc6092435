// SPDX-License-Identifier: Apache-2.0
#include "heirloom/report/metrics_log.h"

#include <fmt/format.h>

#include <cmath>
#include <string_view>

#include "heirloom/core/error.h"

namespace heirloom {
namespace {

struct Line {
  std::string_view text;
  Json value;
};

/// The complete lines of `contents`, blank ones left out.
std::vector<Line> parse_lines(std::string_view contents, const std::string& origin) {
  std::vector<Line> lines;
  for (int64_t number = 1; !contents.empty(); ++number) {
    const size_t newline = contents.find('\n');
    const std::string_view text = contents.substr(0, newline);
    contents.remove_prefix(newline == std::string_view::npos ? contents.size() : newline + 1);
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    try {
      Json value = parse_json(text, fmt::format("{}, line {}", origin, number));
      if (!value.is_object()) {
        throw_error<FormatError>(
            "[metrics] expected one JSON object per line; got {}; {}, line {}; "
            "restore the file or remove that line",
            value.type_name(), origin, number);
      }
      lines.push_back({text, std::move(value)});
    } catch (const FormatError&) {
      if (!contents.empty()) throw;
    }
  }
  return lines;
}

Json finite_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

/// Leaves in the file what a run that continues after `resume_step` must find; returns the path for
/// the writer.
const fs::path& trim(const fs::path& path, int64_t resume_step) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return path;
  const std::string contents = read_file(path, INT64_MAX);
  std::string kept;
  if (resume_step > 0) {
    for (const Line& line : parse_lines(contents, path.string())) {
      const auto step = line.value.find("step");
      if (step != line.value.end() && step->is_number() &&
          step->get<double>() > static_cast<double>(resume_step))
        continue;
      kept.append(line.text).push_back('\n');
    }
  }
  if (kept != contents) write_file_atomically(path, kept);
  return path;
}

}  // namespace

std::vector<Json> read_metrics(const fs::path& path) {
  const std::string contents = read_file(path, INT64_MAX);
  std::vector<Json> values;
  for (Line& line : parse_lines(contents, path.string())) values.push_back(std::move(line.value));
  return values;
}

MetricsLog::MetricsLog(const fs::path& path, int64_t resume_step)
    : writer_(trim(path, resume_step), FileWriter::Mode::kAppend) {}

void MetricsLog::step(const StepReport& r) {
  write({{"step", r.step},
         {"loss", finite_or_null(r.loss)},
         {"lr", finite_or_null(r.lr)},
         {"grad_norm", finite_or_null(r.grad_norm)},
         {"tokens", r.tokens},
         {"tokens_per_second", finite_or_null(r.tokens_per_second)},
         {"mfu", finite_or_null(r.mfu)},
         {"seconds", finite_or_null(r.seconds)}});
}

void MetricsLog::evaluation(int64_t step, double val_loss) {
  write({{"step", step},
         {"val_loss", finite_or_null(val_loss)},
         {"val_perplexity", finite_or_null(std::exp(val_loss))}});
}

void MetricsLog::write(const Json& line) {
  HEIRLOOM_CHECK(line.is_object(), "[metrics] expected a JSON object per line; got {}",
                 line.type_name());
  writer_.write(dump_json(line) + "\n");
  writer_.flush();
}

}  // namespace heirloom
