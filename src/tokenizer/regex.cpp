// SPDX-License-Identifier: Apache-2.0
#include "regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "heirloom/core/error.h"

namespace heirloom::tokenizer {

namespace {

// Backtracking steps of one match; the known patterns need a few per character.
constexpr uint32_t kMatchLimit = 50'000'000;
constexpr size_t kJitStackBytes = 8 << 20;

// PCRE2's \s has U+180E, which Unicode's White_Space lost; its \w lacks marks and connectors. As
// class members:
constexpr const char* kSpace =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr const char* kNotSpace =
    R"(\x{0}-\x{8}\x{e}-\x{1f}!-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff})"
    R"(\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
constexpr const char* kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";

/// Rewrites the escapes that Oniguruma and PCRE2 read differently.
std::string translate(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  const auto bracketed = [&](const char* open, const char* members) {
    if (!in_class) out += open;
    out += members;
    if (!in_class) out += ']';
  };
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char e = pattern[++i];
      if (e == 's') {
        bracketed("[", kSpace);
      } else if (e == 'S') {
        bracketed("[", kNotSpace);
      } else if (e == 'w') {
        bracketed("[", kWord);
      } else if (e == 'W' && !in_class) {
        bracketed("[^", kWord);
      } else if (e == 'W' || e == 'h' || e == 'H') {
        throw_error<FormatError>(
            "[tokenizer] expected a split pattern without \\{} {}; got {}; use another spelling", e,
            in_class ? "in a class" : "", pattern);
      } else {
        out += c;
        out += e;
      }
      continue;
    }
    if (in_class && pattern.substr(i, 2) == "&&")
      throw_error<FormatError>(
          "[tokenizer] expected a split pattern without class intersection (&&); got {}", pattern);
    if (in_class && c == '[' && pattern.substr(i, 2) != "[:")
      throw_error<FormatError>(
          "[tokenizer] expected a split pattern without nested classes; got {}", pattern);
    if (c == '[' && !in_class) {
      in_class = true;
      out += c;
      // A ']' right after the opening is a member.
      if (pattern.substr(i + 1, 1) == "^") out += pattern[++i];
      if (pattern.substr(i + 1, 1) == "]") out += pattern[++i];
      continue;
    }
    if (in_class && pattern.substr(i, 2) == "[:") {
      const size_t close = pattern.find(":]", i);
      if (close != std::string_view::npos) {
        out.append(pattern, i, close + 2 - i);
        i = close + 1;
        continue;
      }
    }
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

std::string message_of(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

/// What a thread needs to match; one per thread, for every Regex.
struct Scratch {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr);
  Scratch() {
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Scratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

Scratch& scratch() {
  thread_local Scratch s;
  return s;
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  bool jit = false;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(std::string_view pattern, Kind kind) {
  const std::string text = kind == Kind::kLiteral ? std::string(pattern) : translate(pattern);
  // Oniguruma's ^ and $ match at every line.
  const uint32_t options =
      PCRE2_UTF | (kind == Kind::kLiteral ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE);
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_max_pattern_length(context.get(), 1 << 16);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), options,
                             &error, &offset, context.get());
  if (code->code == nullptr)
    throw_error<FormatError>("[tokenizer] expected a regular expression; got {} ({} at offset {})",
                             pattern.substr(0, 200), message_of(error), offset);
  code->jit = pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE) == 0;
  code_ = std::move(code);
}

bool Regex::find(std::string_view subject, size_t from, size_t& begin, size_t& end) const {
  Scratch& s = scratch();
  const auto text = reinterpret_cast<PCRE2_SPTR>(subject.data());
  int rc = PCRE2_ERROR_JIT_STACKLIMIT;
  if (code_->jit)
    rc = pcre2_jit_match(code_->code, text, subject.size(), from, PCRE2_NO_UTF_CHECK, s.data,
                         s.context);
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
    rc = pcre2_match(code_->code, text, subject.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                     s.data, s.context);
  if (rc == PCRE2_ERROR_NOMATCH) return false;
  if (rc < 0)
    throw_error<FormatError>(
        "[tokenizer] expected a split pattern that matches with little backtracking; got: {}; at "
        "byte {} of a text",
        message_of(rc), from);
  const PCRE2_SIZE* span = pcre2_get_ovector_pointer(s.data);
  begin = span[0];
  end = span[1];
  return true;
}

}  // namespace heirloom::tokenizer
