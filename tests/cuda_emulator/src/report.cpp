// SPDX-License-Identifier: Apache-2.0
//
// Turns what the observer collected into lines of source.
#include <set>

#include "observer.h"
#include "source_lines.h"

namespace heirloom::emulator {

std::vector<Finding> Observer::take_report() {
  std::vector<uintptr_t> pcs;
  for (const auto& [key, f] : findings_) {
    pcs.push_back(places_[f.place].pc);
    pcs.push_back(places_[f.other_place].pc);
  }
  const std::vector<std::string> lines = source_lines(pcs);
  // Inlining and unrolling make several places of one line, templates several kernels.
  struct Merged {
    Finding finding;
    std::set<std::string> kernels;
  };
  std::map<std::tuple<std::string, std::string, Finding::Kind>, Merged> merged;
  size_t i = 0;
  for (const auto& [key, f] : findings_) {
    const std::string line = lines[i], other_line = f.other.empty() ? "" : lines[i + 1];
    i += 2;
    Merged& m = merged[{line, other_line, f.kind}];
    m.kernels.insert(f.kernel);
    Finding& out = m.finding;
    out.count += f.count;
    if (!out.text.empty()) continue;
    out.kind = f.kind;
    out.kernel = f.kernel;
    out.line = line;
    out.other_line = other_line;
    const char* name = f.kind == Finding::Kind::kRace            ? "race"
                       : f.kind == Finding::Kind::kUninitialised ? "uninitialised read"
                                                                 : "out of bounds";
    out.text = line + ": " + name + " in " + f.kernel + ": " + f.what;
    if (!other_line.empty()) out.text += "; at " + other_line + " " + f.other;
  }
  findings_.clear();
  std::vector<Finding> report;
  for (auto& [key, m] : merged) {
    if (m.kernels.size() > 1) {
      m.finding.text += "; and in " + std::to_string(m.kernels.size() - 1) + " other kernels";
    }
    report.push_back(std::move(m.finding));
  }
  return report;
}

std::vector<KernelTraffic> Observer::take_traffic() {
  std::vector<KernelTraffic> all;
  for (auto& [name, kernel] : kernels_) {
    if (kernel.totals.launches == 0) continue;
    std::vector<uintptr_t> pcs;
    std::vector<uint32_t> ids;
    for (uint32_t p = 0; p < kernel.stats.size(); ++p) {
      if (kernel.stats[p].accesses == 0) continue;
      pcs.push_back(places_[p].pc);
      ids.push_back(p);
    }
    const std::vector<std::string> lines = source_lines(pcs);
    std::map<std::tuple<std::string, Space, Touch, bool, uint32_t>, LineTraffic> merged;
    for (size_t i = 0; i < ids.size(); ++i) {
      const Place& place = places_[ids[i]];
      const Stat& stat = kernel.stats[ids[i]];
      LineTraffic& t = merged[{lines[i], place.space, place.touch, place.matrix, stat.bytes}];
      t.line = lines[i];
      t.space = place.space;
      t.write = place.touch == Touch::kWrite;
      t.atomic = place.touch == Touch::kAtomic;
      t.matrix = place.matrix;
      t.bytes = stat.bytes;
      t.accesses += stat.accesses;
      t.used += stat.units.used;
      t.ideal += stat.units.ideal;
    }
    KernelTraffic out = kernel.totals;
    out.kernel = name;
    for (auto& [key, t] : merged) out.lines.push_back(std::move(t));
    all.push_back(std::move(out));
    kernel.totals = {};
    kernel.stats.clear();
  }
  return all;
}

std::vector<Finding> take_report() { return Observer::instance().take_report(); }
void watch_traffic(bool on) { Observer::instance().watch_traffic(on); }
std::vector<KernelTraffic> take_traffic() { return Observer::instance().take_traffic(); }
bool instrumented() { return instrument == &Observer::instance(); }

std::string format(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& f : findings) {
    text += f.text;
    if (f.count > 1) text += " (" + std::to_string(f.count) + " times)";
    text += "\n";
  }
  return text;
}

namespace {
template <class F>
uint64_t sum(const std::vector<LineTraffic>& lines, Space space, F value) {
  uint64_t total = 0;
  for (const LineTraffic& t : lines) {
    if (t.space == space && !t.atomic) total += value(t);
  }
  return total;
}
}  // namespace

uint64_t KernelTraffic::used(Space space) const {
  return sum(lines, space, [](const LineTraffic& t) { return t.used; });
}
uint64_t KernelTraffic::ideal(Space space) const {
  return sum(lines, space, [](const LineTraffic& t) { return t.ideal; });
}

}  // namespace heirloom::emulator
