#include "models/nn/precision.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "core/error.h"

namespace ergon::nn {
namespace {

bool glob_matches(std::string_view pattern, std::string_view text) {
  if (pattern.empty()) return text.empty();
  if (pattern[0] == '*') {
    return glob_matches(pattern.substr(1), text) || (!text.empty() && glob_matches(pattern, text.substr(1)));
  }
  return !text.empty() && (pattern[0] == '?' || pattern[0] == text[0])
         && glob_matches(pattern.substr(1), text.substr(1));
}

// Does `pattern` match parts of `name` that follow each other, up to its end?
bool names(std::string_view pattern, std::string_view name) {
  while (!glob_matches(pattern, name)) {
    const std::size_t dot = name.find('.');
    if (dot == std::string_view::npos) return false;
    name.remove_prefix(dot + 1);
  }
  return true;
}

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const std::size_t comma = std::min(text.find(','), text.size());
    std::string_view part = text.substr(0, comma);
    while (part.starts_with(' ')) part.remove_prefix(1);
    while (part.ends_with(' ')) part.remove_suffix(1);
    if (!part.empty()) parts.push_back(part);
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return parts;
}

// "transformer, transformer.h, transformer.h.*, ...": numbers as *, each name once.
std::string candidates(Module& root) {
  std::set<std::string> shown;
  std::string list;
  for (const auto& [name, module] : root.named_modules()) {
    std::string general;
    for (std::string_view rest = name; !rest.empty();) {
      const std::size_t dot = std::min(rest.find('.'), rest.size());
      const std::string_view part = rest.substr(0, dot);
      const bool number =
          std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c); });
      general += (general.empty() ? "" : ".") + std::string(number ? "*" : part);
      rest.remove_prefix(std::min(dot + 1, rest.size()));
    }
    if (!general.empty() && shown.insert(general).second) list += (list.empty() ? "" : ", ") + general;
  }
  return list;
}

}  // namespace

std::vector<std::string> set_precision(Module& root, std::string_view patterns, DType dtype) {
  std::vector<std::string> found;
  for (std::string_view pattern : split(patterns)) {
    const std::size_t before = found.size();
    for (const auto& [name, module] : root.named_modules()) {
      if (name.empty() || !names(pattern, name)) continue;
      module->precision(dtype);
      found.push_back(name);
    }
    ERGON_CHECK(found.size() > before, "no module is named '{}': expected one of {}", pattern,
                candidates(root));
  }
  return found;
}

}  // namespace ergon::nn
