#include "models/io/json.h"

#include <set>
#include <vector>

#include "core/error.h"
#include "models/io/atomic_file.h"
#include "models/io/mapped_file.h"

namespace ergon::io {
namespace {

using nlohmann::json;

// "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without the library's prefix.
std::string reason_of(const json::exception& error) {
  const std::string_view what = error.what();
  const std::size_t end = what.find("] ");
  const std::string text = quote(end == std::string_view::npos ? what : what.substr(end + 2));
  return text.substr(1, text.size() - 2);
}

}  // namespace

std::string quote(std::string_view text) {
  constexpr std::size_t kMaxLength = 160;
  std::string result = "'";
  for (const char c : text.substr(0, kMaxLength)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      result += fmt::format("\\x{:02x}", byte);
    } else {
      result += c;
    }
  }
  return result + (text.size() > kMaxLength ? "...'" : "'");
}

json parse_json(std::string_view text, std::string_view name) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const json::parser_callback_t check = [&](int depth, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
        keys.emplace_back();
        [[fallthrough]];
      case json::parse_event_t::array_start:
        ERGON_CHECK(depth < kMaxJsonDepth, "{}: JSON nested deeper than {} levels", name, kMaxJsonDepth);
        break;
      case json::parse_event_t::object_end:
        keys.pop_back();
        break;
      case json::parse_event_t::key: {
        const auto& key = parsed.get_ref<const std::string&>();
        ERGON_CHECK(keys.back().insert(key).second, "{}: key {} appears twice", name, quote(key));
        break;
      }
      default:
        break;
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::exception& error) {
    ERGON_FAIL("{}: not valid JSON: {}", name, reason_of(error));
  }
}

json read_json(const std::filesystem::path& path, std::size_t max_bytes) {
  const MappedFile file(path);
  ERGON_CHECK(file.bytes().size() <= max_bytes, "{}: {} bytes of JSON, expected at most {}", path.string(),
              file.bytes().size(), max_bytes);
  return parse_json(file.text(), path.string());
}

std::string to_text(const json& value, std::string_view name) {
  try {
    return value.dump(2) + "\n";
  } catch (const json::exception& error) {
    ERGON_FAIL("{}: cannot be written as JSON: {}", name, reason_of(error));
  }
}

void write_json(const std::filesystem::path& path, const json& value) {
  write_file(path, to_text(value, path.string()));
}

}  // namespace ergon::io
