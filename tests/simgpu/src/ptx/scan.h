#pragma once
// Scanning of PTX text: white space, comments, words, declarations.
#include <cctype>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "types.h"

namespace simgpu {

inline bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.'
         || c == ':';
}

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  // Past white space and comments.
  void skip() {
    while (at_ < text_.size()) {
      if (std::isspace(static_cast<unsigned char>(text_[at_]))) {
        ++at_;
      } else if (text_.compare(at_, 2, "//") == 0) {
        at_ = find("\n");
      } else if (text_.compare(at_, 2, "/*") == 0) {
        at_ = std::min(find("*/") + 2, text_.size());
      } else {
        return;
      }
    }
  }
  bool done() {
    skip();
    return at_ >= text_.size();
  }
  char peek() {
    skip();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) throw PtxError(std::string("PTX: expected '") + c + "' before \"" + context() + "\"");
  }
  // A name, directive, opcode or number: "ld.param.u64", "%tid.x", "$L__BB0_2", "0f3F800000"; '-' may lead
  // it.
  std::string_view word() {
    skip();
    const size_t begin = at_;
    if (at_ < text_.size() && text_[at_] == '@') return text_.substr(at_++, 1);
    if (at_ < text_.size() && (text_[at_] == '-' || text_[at_] == '!')) ++at_;
    while (at_ < text_.size() && is_word(text_[at_])) {
      if (text_[at_] == ':' && text_.compare(at_, 2, "::") != 0) break;  // the end of a label
      if (text_[at_] == ':') ++at_;
      ++at_;
    }
    if (at_ == begin) throw PtxError("PTX: expected a word before \"" + context() + "\"");
    return text_.substr(begin, at_ - begin);
  }
  std::string_view quoted() {
    expect('"');
    const size_t begin = at_;
    at_ = find("\"");
    const std::string_view inside = text_.substr(begin, at_ - begin);
    if (at_ < text_.size()) ++at_;
    return inside;
  }
  std::string_view rest_of_line() {
    const size_t begin = at_;
    at_ = find("\n");
    return text_.substr(begin, at_ - begin);
  }
  std::string_view until(char c) {
    const size_t begin = at_;
    at_ = std::min(text_.find(c, at_), text_.size());
    return text_.substr(begin, at_ - begin);
  }
  // The text between braces, which must balance; strings may hold braces.
  std::string_view braces() {
    expect('{');
    const size_t begin = at_;
    for (int depth = 1; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c == '"') {
        at_ = std::min(text_.find('"', at_ + 1), text_.size());
      } else if (c == '/' && text_.compare(at_, 2, "//") == 0) {
        at_ = find("\n");
      } else if (c == '{') {
        ++depth;
      } else if (c == '}' && --depth == 0) {
        ++at_;
        return text_.substr(begin, at_ - 1 - begin);
      }
    }
    throw PtxError("PTX: a '{' is never closed");
  }
  u64 number() {
    const std::string text(word());
    char* end = nullptr;
    const u64 value = std::strtoull(text.c_str(), &end, 0);
    if (end == text.c_str()) throw PtxError("PTX: expected a number, got \"" + text + "\"");
    return value;
  }
  size_t position() const { return at_; }
  void seek(size_t at) { at_ = at; }

 private:
  size_t find(const char* what) const { return std::min(text_.find(what, at_), text_.size()); }
  std::string context() const {
    return std::string(text_.substr(at_, std::min<size_t>(40, text_.find('\n', at_) - at_)));
  }

  std::string_view text_;
  size_t at_ = 0;
};

// ".align 4 .b8 name[12]", ".u64 .ptr .global .align 8 name", ".pred p": what follows the state space.
struct Declaration {
  std::string name, type;
  u32 align = 1, element_bytes = 0;
  std::optional<u64> elements;  // of an array; [] is 0
  int range = -1;               // name<range>
  u32 bytes() const { return element_bytes * static_cast<u32>(elements.value_or(1)); }
};
Declaration scan_declaration(Scanner& scanner);

}  // namespace simgpu
