// SPDX-License-Identifier: Apache-2.0
#include "pipeline.h"

#include "heirloom/core/error.h"

namespace heirloom::tokenizer {
namespace {

// NFKD's worst case is 11 bytes per byte; Replace and Prepend of real files add less.
constexpr size_t kMaxGrowth = 64;
constexpr size_t kFreeGrowth = 1 << 16;

template <class... F>
struct Overload : F... {
  using F::operator()...;
};
template <class... F>
Overload(F...) -> Overload<F...>;

bool starts_with(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

/// Calls visit(begin, end, is_match) over all of `subject`, non-matches included, nothing empty.
template <class Visit>
void for_each_match(const Regex& pattern, std::string_view subject, Visit&& visit) {
  size_t done = 0, at = 0, begin, end;
  while (at <= subject.size() && pattern.find(subject, at, begin, end)) {
    if (end <= begin) {  // an empty match cuts here
      if (begin > done) visit(done, begin, false);
      done = begin;
      at = begin + std::max<size_t>(1, valid_char_length(subject.substr(begin, 4)));
      continue;
    }
    if (begin > done) visit(done, begin, false);
    visit(begin, end, true);
    done = at = end;
  }
  if (done < subject.size()) visit(done, subject.size(), false);
}

std::string strip_spaces(std::string_view text, const StripSpaces& strip) {
  constexpr std::string_view kSpaces = " \t\n\v\f\r";
  const size_t begin = strip.left ? text.find_first_not_of(kSpaces) : 0;
  if (begin == std::string_view::npos) return {};
  const size_t end = strip.right ? text.find_last_not_of(kSpaces) + 1 : text.size();
  return std::string(text.substr(begin, end - begin));
}

std::string normalize_valid_spans(std::string_view text, NormalForm form) {
  std::string out;
  for_each_span(text, [&](std::string_view span, bool valid) {
    if (valid) {
      out += normalize(span, form);
    } else {
      out += span;
    }
  });
  return out;
}

}  // namespace

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  size_t at = 0;
  for (size_t hit; (hit = text.find(from, at)) != std::string_view::npos; at = hit + from.size())
    out.append(text, at, hit - at).append(to);
  return out.append(text, at, text.size() - at);
}

std::string replace_matches(std::string_view text, const ReplaceMatches& replace) {
  std::string out;
  for_each_span(text, [&](std::string_view span, bool valid) {
    if (!valid) {
      out += span;
      return;
    }
    for_each_match(replace.pattern, span, [&](size_t begin, size_t end, bool is_match) {
      out += is_match ? std::string_view(replace.content) : span.substr(begin, end - begin);
    });
  });
  return out;
}

std::string Normalizer::run(std::string_view text) const {
  std::string now(text);
  for (const Step& step : steps_) {
    now = std::visit(
        Overload{
            [&](NormalForm form) { return normalize_valid_spans(now, form); },
            [&](const Prepend& prepend) { return now.empty() ? now : prepend.text + now; },
            [&](const ReplaceMatches& replace) { return replace_matches(now, replace); },
            [&](const ReplaceText& replace) { return replace_all(now, replace.from, replace.to); },
            [&](const StripSpaces& strip) { return strip_spaces(now, strip); }},
        step);
    if (now.size() > kMaxGrowth * text.size() + kFreeGrowth)
      throw_error<FormatError>(
          "[tokenizer] expected a normalizer that keeps a text's size within {} times; got {} "
          "bytes "
          "from {}",
          kMaxGrowth, now.size(), text.size());
  }
  return now;
}

void PreTokenizer::run(std::string_view text, bool first, Sink& sink) const {
  if (text.empty()) return;
  if (steps_.empty()) return sink.word(text);
  bool may_prefix = true;
  for_each_span(text, [&](std::string_view span, bool valid) {
    if (valid) {
      run_step(0, {span, first, may_prefix}, sink);
    } else {
      sink.word(span);
    }
    first = false;
    may_prefix = false;
  });
}

void PreTokenizer::run_step(size_t step, const Piece& piece, Sink& sink) const {
  if (step == steps_.size()) return sink.word(piece.text);
  std::visit(
      Overload{
          [&](const Split& split) { run_split(split, step, piece, sink); },
          [&](const PrefixSpace&) {
            if (!piece.may_prefix || starts_with(piece.text, " "))
              return run_step(step + 1, piece, sink);
            std::string prefixed(1, ' ');
            prefixed += piece.text;
            run_step(step + 1, {prefixed, piece.first, piece.may_prefix}, sink);
          },
          [&](const SpellBytes&) {
            std::string spelled;
            for (const char c : piece.text) spelled += byte_alphabet()[static_cast<uint8_t>(c)];
            run_step(step + 1, {spelled, piece.first, piece.may_prefix}, sink);
          },
          [&](const Metaspace& meta) {
            std::string text = replace_all(piece.text, " ", meta.replacement);
            const bool wanted = meta.prepend == Metaspace::PrependScheme::kAlways ||
                                (meta.prepend == Metaspace::PrependScheme::kFirst && piece.first);
            if (wanted && piece.may_prefix && !starts_with(text, meta.replacement))
              text = meta.replacement + text;
            const Piece spaced{text, piece.first, piece.may_prefix};
            if (!meta.split) return run_step(step + 1, spaced, sink);
            run_split({*meta.split, SplitBehavior::kMergedWithNext, false}, step, spaced, sink);
          }},
      steps_[step]);
}

void PreTokenizer::run_split(const Split& split, size_t step, const Piece& piece,
                             Sink& sink) const {
  const auto emit = [&](size_t begin, size_t end) {
    if (end > begin)
      run_step(step + 1,
               {piece.text.substr(begin, end - begin), piece.first && begin == 0,
                piece.may_prefix || begin > 0},
               sink);
  };
  // The piece being grown by the merging behaviours, and whether a match ended (or started) it.
  size_t open_begin = 0, open_end = 0;
  bool open = false, open_is_match = false;
  const auto flush = [&] {
    if (open) emit(open_begin, open_end);
    open = false;
  };
  for_each_match(split.pattern, piece.text, [&](size_t begin, size_t end, bool raw_match) {
    const bool is_match = raw_match != split.invert;
    bool joins = false;
    switch (split.behavior) {
      case SplitBehavior::kIsolated:
        return emit(begin, end);
      case SplitBehavior::kRemoved:
        if (!is_match) emit(begin, end);
        return;
      case SplitBehavior::kContiguous:
        joins = open && open_is_match == is_match;
        break;
      case SplitBehavior::kMergedWithPrevious:
        joins = open && is_match && !open_is_match;
        break;
      case SplitBehavior::kMergedWithNext:
        joins = open && open_is_match && !is_match;
        break;
    }
    if (!joins) {
      flush();
      open_begin = begin;
      open = true;
    }
    open_end = end;
    open_is_match = is_match;
  });
  flush();
}

}  // namespace heirloom::tokenizer
