// SPDX-License-Identifier: Apache-2.0
#include "heirloom/report/html_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "chart.h"
#include "heirloom/report/progress.h"
#include "page_assets.h"

namespace heirloom {
namespace {

using report::Chart;
using report::Curve;
using report::escape_html;
using report::Point;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr size_t kStreamsShownOpen = 12;
constexpr size_t kTableRowsShownOpen = 30;
constexpr size_t kSmoothPoints = 500;
constexpr size_t kSmoothFraction = 100;  // the window's half is a hundredth of the run
constexpr const char* kDash = "\u2013";

/// The number under `key`, NaN when there is none.
double number(const Json& object, const char* key) {
  if (!object.is_object()) return kNaN;
  const auto it = object.find(key);
  return it != object.end() && it->is_number() ? it->get<double>() : kNaN;
}

std::string text_or_dash(const Json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return kDash;
  return it->is_string() ? it->get<std::string>() : dump_json(*it);
}

/// 1234567 as 1,234,567.
std::string grouped(double value) {
  if (!std::isfinite(value)) return kDash;
  const std::string digits = fmt::format("{:.0f}", std::fabs(value));
  std::string out = value < 0 ? "-" : "";
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string percent(double fraction) {
  return std::isfinite(fraction) ? fmt::format("{:.1f}%", 100 * fraction) : kDash;
}

/// The points (step, key) of the lines that have `key` at all; null is a gap in the curve.
std::vector<Point> curve_points(const RunSeries& run, const char* key) {
  std::vector<Point> points;
  for (const Json& line : run.metrics) {
    const double step = number(line, "step");
    if (std::isfinite(step) && line.contains(key)) points.push_back({step, number(line, key)});
  }
  // A comparison may be handed lines in any order; a curve runs from left to right.
  std::stable_sort(points.begin(), points.end(),
                   [](const Point& a, const Point& b) { return a.x < b.x; });
  return points;
}

std::vector<double> finite_values(const RunSeries& run, const char* key) {
  std::vector<double> values;
  for (const Point& p : curve_points(run, key))
    if (std::isfinite(p.y)) values.push_back(p.y);
  return values;
}

/// Cells are escaped here. `wide_rows`: from how many rows on the table is folded away.
std::string render_table(const NamedTable& table, size_t rows_shown_open = kTableRowsShownOpen) {
  size_t columns = table.columns.size();
  for (const auto& row : table.rows) columns = std::max(columns, row.size());
  std::vector<bool> numeric(columns, true);
  for (size_t c = 0; c < columns; ++c) {
    bool any = false;
    for (const auto& row : table.rows) {
      if (c >= row.size() || row[c].empty() || row[c] == kDash) continue;
      any = true;
      const size_t first = row[c].find_first_not_of("+-.");
      if (first == std::string::npos || !std::isdigit(static_cast<unsigned char>(row[c][first])))
        numeric[c] = false;
    }
    if (!any) numeric[c] = false;
  }
  const auto cell = [&](const char* tag, size_t c, const std::string& text) {
    return fmt::format("<{}{}>{}</{}>", tag, numeric[c] ? " class=\"n\"" : "", escape_html(text),
                       tag);
  };
  std::string html = "<div class=\"scroll\"><table><thead><tr>";
  for (size_t c = 0; c < columns; ++c)
    html += cell("th", c, c < table.columns.size() ? table.columns[c] : "");
  html += "</tr></thead><tbody>\n";
  for (const auto& row : table.rows) {
    html += "<tr>";
    for (size_t c = 0; c < columns; ++c) html += cell("td", c, c < row.size() ? row[c] : "");
    html += "</tr>\n";
  }
  html += "</tbody></table></div>\n";
  if (!table.note.empty()) html += "<p class=\"note\">" + escape_html(table.note) + "</p>\n";
  if (table.rows.size() <= rows_shown_open) return html;
  return fmt::format("<details><summary>{} rows</summary>{}</details>\n", table.rows.size(), html);
}

std::string section(const std::string& title, const std::string& body) {
  return body.empty()
             ? ""
             : fmt::format("<section><h2>{}</h2>\n{}</section>\n", escape_html(title), body);
}

std::string render_final_figures(const RunReport& report) {
  NamedTable table;
  table.columns = {
      "run",        "steps",           "tokens",     "training loss", "validation loss",
      "perplexity", "best validation", "throughput", "mfu",           "time"};
  for (const RunSeries& run : report.runs) {
    if (run.metrics.empty()) continue;
    const std::vector<double> losses = finite_values(run, "loss");
    const std::vector<double> validation = finite_values(run, "val_loss");
    std::vector<double> speed = finite_values(run, "tokens_per_second");
    const std::vector<double> mfu = finite_values(run, "mfu");
    const std::vector<double> tokens = finite_values(run, "tokens");
    const std::vector<double> seconds = finite_values(run, "seconds");
    const std::vector<Point> steps = curve_points(run, "loss");

    const auto mean_of_last = [](const std::vector<double>& v, size_t count) {
      if (v.empty()) return kNaN;
      count = std::clamp<size_t>(count, 1, v.size());
      double sum = 0.0;
      for (size_t i = v.size() - count; i < v.size(); ++i) sum += v[i];
      return sum / static_cast<double>(count);
    };
    const auto fixed4 = [](double v) {
      return std::isfinite(v) ? fmt::format("{:.4f}", v) : std::string(kDash);
    };
    double median_speed = kNaN, total_seconds = 0.0;
    if (!speed.empty()) {
      const auto middle = speed.begin() + static_cast<std::ptrdiff_t>(speed.size() / 2);
      std::nth_element(speed.begin(), middle, speed.end());
      median_speed = *middle;
    }
    for (const double s : seconds) total_seconds += s;
    const double final_loss = validation.empty() ? kNaN : validation.back();
    const double best =
        validation.empty() ? kNaN : *std::min_element(validation.begin(), validation.end());
    const double perplexity = std::exp(final_loss);
    table.rows.push_back(
        {run.name, steps.empty() ? kDash : grouped(steps.back().x),
         tokens.empty() ? kDash : format_count(tokens.back()),
         fixed4(mean_of_last(losses, losses.size() / 50)), fixed4(final_loss),
         std::isfinite(perplexity) ? fmt::format("{:.{}f}", perplexity, perplexity < 1000 ? 2 : 0)
                                   : kDash,
         fixed4(best), std::isfinite(median_speed) ? format_count(median_speed) + " tok/s" : kDash,
         percent(mean_of_last(mfu, mfu.size())),
         seconds.empty() ? kDash : format_duration(total_seconds)});
  }
  if (table.rows.empty()) return "";
  table.note =
      "Training loss: mean over the last 2% of the steps. Losses in nats per token. Throughput: "
      "median over the steps.";
  return render_table(table);
}

std::string render_charts(const RunReport& report, Json& data) {
  const bool several = report.runs.size() > 1;
  std::vector<report::Level> levels;
  for (const ReferenceLine& line : report.reference_lines)
    levels.push_back({line.name, line.value});

  enum class Detail { kRawAndSmooth, kRaw };
  const auto add_runs = [&](Chart chart, const char* key, Detail detail) {
    for (size_t r = 0; r < report.runs.size(); ++r) {
      const RunSeries& run = report.runs[r];
      const std::vector<Point> points = curve_points(run, key);
      const int colour = static_cast<int>(r % report::kColours);
      const size_t half = detail == Detail::kRawAndSmooth ? points.size() / kSmoothFraction : 0;
      const std::string name = several ? run.name : chart.title;
      if (half > 0) {
        // With many runs the raw curves would cover each other.
        if (report.runs.size() <= 3)
          chart.curves.push_back({several ? run.name + ", each step" : "each step", points, colour,
                                  /*faint=*/true, /*marked=*/false});
        chart.curves.push_back({several ? run.name : "running median",
                                report::running_median(points, half, kSmoothPoints), colour, false,
                                false});
      } else {
        chart.curves.push_back({name, points, colour, false, /*marked=*/true});
      }
    }
    return report::render_chart(chart, data);
  };

  Chart training;
  training.title = "Training loss";
  training.unit = "nats per token";
  training.width = 1064;
  training.height = 330;
  training.levels = levels;
  Chart validation;
  validation.title = "Validation loss";
  validation.unit = "nats per token";
  validation.levels = levels;
  Chart lr;
  lr.title = "Learning rate";
  lr.from_zero = true;
  Chart norm;
  norm.title = "Gradient norm";
  norm.unit = "before clipping";
  norm.from_zero = true;
  Chart speed;
  speed.title = "Throughput";
  speed.unit = "tokens per second";
  speed.from_zero = true;

  std::string charts = add_runs(training, "loss", Detail::kRawAndSmooth);
  if (!charts.empty()) charts = "<div class=\"wide\">" + charts + "</div>\n";
  charts += add_runs(validation, "val_loss", Detail::kRaw);
  charts += add_runs(lr, "lr", Detail::kRaw);
  charts += add_runs(norm, "grad_norm", Detail::kRawAndSmooth);
  charts += add_runs(speed, "tokens_per_second", Detail::kRawAndSmooth);
  if (charts.empty()) return "<p class=\"note\">No steps are recorded yet.</p>\n";
  return "<div class=\"charts\">\n" + charts + "</div>\n";
}

/// [1, 2, 3, 5] as "1–3, 5".
std::string layer_ranges(const Json& layers) {
  std::vector<int64_t> list;
  if (layers.is_array())
    for (const Json& layer : layers)
      if (layer.is_number_integer()) list.push_back(layer.get<int64_t>());
  std::sort(list.begin(), list.end());
  std::string out;
  for (size_t i = 0; i < list.size();) {
    size_t j = i;
    while (j + 1 < list.size() && list[j + 1] == list[j] + 1) ++j;
    if (!out.empty()) out += ", ";
    out += fmt::format("{}", list[i]);
    if (j > i) out += fmt::format("{}{}", j == i + 1 ? ", " : kDash, list[j]);
    i = j + 1;
  }
  return out.empty() ? kDash : out;
}

std::string render_kv(const Json& kv) {
  if (!kv.is_object()) return "";
  const double elements = number(kv, "elements_per_token");
  const double baseline = number(kv, "baseline_elements_per_token");
  const double bytes = number(kv, "bytes_per_token");
  const double read = number(kv, "read_bytes_per_token_per_step");
  std::string html = fmt::format("<p>Scheme <b>{}</b>: {} elements per token",
                                 escape_html(text_or_dash(kv, "scheme")), grouped(elements));
  if (std::isfinite(bytes)) {
    html += fmt::format(", {} in {}", format_bytes(bytes), escape_html(text_or_dash(kv, "dtype")));
  }
  if (const double reduction = number(kv, "reduction"); reduction > 0)
    html += fmt::format(", {} less than multi-head attention", percent(reduction));
  if (std::isfinite(read))
    html += fmt::format("; a decode step reads {} per cached token", format_bytes(read));
  html += ".</p>\n";
  if (const double longest = std::max(elements, baseline);
      std::isfinite(elements) && std::isfinite(baseline) && longest > 0 && elements >= 0) {
    const auto bar = [&](const char* name, double value, const char* extra) {
      return fmt::format(
          "<span>{}</span><div><div class=\"bar{}\" style=\"width:{:.2f}%\"></div></div>"
          "<span>{}</span>\n",
          name, extra, 100 * value / longest, grouped(value));
    };
    html += "<div class=\"bars\">" + bar("this model", elements, "") +
            bar("multi-head attention", baseline, " base") + "</div>\n";
  }
  NamedTable streams;
  streams.columns = {"layer", "stream", "heads", "elements / token", "", "read by layers"};
  if (const auto it = kv.find("streams"); it != kv.end() && it->is_array()) {
    for (const Json& stream : *it) {
      if (!stream.is_object()) continue;
      const auto shared = stream.find("shared");
      streams.rows.push_back(
          {text_or_dash(stream, "layer"), text_or_dash(stream, "kind"),
           text_or_dash(stream, "heads"), grouped(number(stream, "elements_per_token")),
           shared != stream.end() && shared->is_boolean() && shared->get<bool>() ? "shared" : "",
           layer_ranges(stream.contains("readers") ? stream["readers"] : Json())});
    }
  }
  if (!streams.rows.empty()) html += render_table(streams, kStreamsShownOpen);
  return html;
}

std::string render_samples(const std::vector<Sample>& samples) {
  std::string html;
  for (const Sample& sample : samples) {
    html += fmt::format("<div class=\"sample\"><span>step {}</span><p><em>{}</em>{}</p></div>\n",
                        grouped(static_cast<double>(sample.step)), escape_html(sample.prompt),
                        escape_html(sample.text));
  }
  return html;
}

/// JSON that cannot end the script element it stands in.
std::string script_safe(std::string json) {
  std::string out;
  out.reserve(json.size());
  for (const char c : json) {
    if (c == '<' || c == '>' || c == '&')
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    else
      out += c;
  }
  return out;
}

}  // namespace

std::string render_html(const RunReport& report) {
  Json data = Json::array();
  const std::string title = escape_html(report.title);
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
      "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>{0}</title>\n<style>{1}</style>\n</head>\n<body>\n<header><h1>{0}</h1>\n",
      title, report::kPageStyle);
  if (!report.subtitle.empty())
    html += "<p class=\"subtitle\">" + escape_html(report.subtitle) + "</p>\n";
  html += "</header>\n";
  html += section("Final figures", render_final_figures(report));
  html += section("Curves", render_charts(report, data));
  html += section("KV cache per token", render_kv(report.kv));
  for (const NamedTable& table : report.tables) html += section(table.title, render_table(table));
  html += section("Samples", render_samples(report.samples));
  if (!report.config.is_null()) {
    html += section("Configuration", "<details><summary>resolved configuration</summary><pre>" +
                                         escape_html(dump_json(report.config, 2)) +
                                         "</pre></details>\n");
  }
  html +=
      "<footer>Written by heirloom.</footer>\n<script type=\"application/json\" "
      "id=\"chart-data\">" +
      script_safe(dump_json(data)) + "</script>\n<script>";
  html += report::kPageScript;
  return html + "</script>\n</body>\n</html>\n";
}

}  // namespace heirloom
