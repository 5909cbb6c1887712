#pragma once

// JSON from files that nobody vouches for.

#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace ergon::io {

// Objects and arrays within each other, at most: deeper input is refused before it can exhaust the stack.
inline constexpr int kMaxJsonDepth = 64;

// Throws Error "<name>: ..." for text that is not JSON, nests deeper than kMaxJsonDepth, or has a key twice
// in one object.
nlohmann::json parse_json(std::string_view text, std::string_view name);

// The same for a file; `max_bytes` bounds its size.
nlohmann::json read_json(const std::filesystem::path& path, std::size_t max_bytes = std::size_t{64} << 20);

// Indented text with a newline at the end. Throws Error "<name>: ..." if a string in it is not UTF-8.
std::string to_text(const nlohmann::json& value, std::string_view name);

// Writes to_text(value) atomically.
void write_json(const std::filesystem::path& path, const nlohmann::json& value);

// A string from a file in quotes, fit for a one-line message: shortened, control characters escaped.
std::string quote(std::string_view text);

}  // namespace ergon::io
