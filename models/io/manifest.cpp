// manifest.json: JSON whose last member is the checksum of all the text before it.

#include <charconv>

#include "core/error.h"
#include "models/io/checkpoint.h"
#include "models/io/json.h"

namespace ergon::io {
namespace {

using nlohmann::json;

constexpr int kVersion = 1;
constexpr std::size_t kDigits = 16;  // of a checksum in hexadecimal

std::string tail_of(std::string_view body) {
  return fmt::format(",\n  \"xxh3\": \"{}\"\n}}\n", to_hex(checksum(body.data(), body.size())));
}

// The member of an object; its type is checked by the caller.
const json& member(const json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  ERGON_CHECK(found != object.end(), "{} has no \"{}\"", where, key);
  return *found;
}

std::uint64_t parse_checksum(const json& value, const std::string& where) {
  ERGON_CHECK(value.is_string(), "{}: \"xxh3\" must be a string, got {}", where, quote(value.type_name()));
  const auto& text = value.get_ref<const std::string&>();
  std::uint64_t parsed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed, 16);
  ERGON_CHECK(text.size() == kDigits && error == std::errc() && end == text.data() + text.size(),
              "{}: \"xxh3\" must be {} hexadecimal digits, got {}", where, kDigits, quote(text));
  return parsed;
}

Manifest::File parse_file(const json& value, const std::string& where) {
  ERGON_CHECK(value.is_object(), "{} must be an object, got {}", where, quote(value.type_name()));
  const json& size = member(value, "size", where);
  ERGON_CHECK(size.is_number_unsigned(), "{}: \"size\" must be a non-negative integer, got {}", where,
              quote(size.dump()));
  return {size.get<std::uint64_t>(), parse_checksum(member(value, "xxh3", where), where)};
}

}  // namespace

std::string to_text(const Manifest& manifest) {
  json files = json::object();
  for (const auto& [name, file] : manifest.files) {
    files[name] = {{"size", file.size}, {"xxh3", to_hex(file.checksum)}};
  }
  const json body = {{"ergon_checkpoint", kVersion}, {"files", files}, {"step", manifest.step}};
  std::string text = body.dump(2);
  text.resize(text.size() - 2);  // the "\n}" that tail_of gives back
  return text + tail_of(text);
}

Manifest parse_manifest(std::string_view text, std::string_view name) {
  const std::string where = fmt::format("[checkpoint] {}", name);
  const std::size_t tail_size = tail_of("").size();
  ERGON_CHECK(text.size() > tail_size, "{}: {} bytes are too few for a manifest: the file is damaged", where,
              text.size());
  const std::string_view body = text.substr(0, text.size() - tail_size);
  const std::string expected = tail_of(body);
  ERGON_CHECK(text.substr(body.size()) == expected,
              "{}: its content has checksum {}, the end of the file says otherwise: the file is damaged",
              where, to_hex(checksum(body.data(), body.size())));

  const json root = parse_json(text, where);
  ERGON_CHECK(root.is_object(), "{}: must be an object, got {}", where, quote(root.type_name()));
  const json& version = member(root, "ergon_checkpoint", where);
  ERGON_CHECK(version == kVersion, "{}: checkpoint format {}, this program reads {}", where,
              quote(version.dump()), kVersion);
  const json& step = member(root, "step", where);
  ERGON_CHECK(step.is_number_unsigned() && step.get<std::uint64_t>() <= INT64_MAX,
              "{}: \"step\" must be a non-negative integer, got {}", where, quote(step.dump()));
  const json& files = member(root, "files", where);
  ERGON_CHECK(files.is_object(), "{}: \"files\" must be an object, got {}", where, quote(files.type_name()));
  Manifest manifest;
  manifest.step = step.get<std::int64_t>();
  for (const auto& [file, value] : files.items()) {
    ERGON_CHECK(!file.empty() && file.find('/') == std::string::npos, "{}: {} is not a file name", where,
                quote(file));
    manifest.files[file] = parse_file(value, fmt::format("{}: file {}", where, quote(file)));
  }
  return manifest;
}

}  // namespace ergon::io
