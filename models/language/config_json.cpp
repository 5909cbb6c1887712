#include "models/language/config_json.h"

namespace ergon::models {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 31;

}  // namespace

ConfigReader::ConfigReader(std::string model, const nlohmann::json& json)
    : model_(std::move(model)), json_(json) {
  ERGON_CHECK(json.is_object(), "[{}] config.json: expected an object, got {}", model_, json.type_name());
}

const nlohmann::json* ConfigReader::find(const char* key) const {
  const auto found = json_.find(key);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

std::int64_t ConfigReader::integer(const char* key, std::optional<std::int64_t> fallback) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) {
    ERGON_CHECK(fallback.has_value(), "[{}] config.json: {} is missing", model_, key);
    return *fallback;
  }
  ERGON_CHECK(value->is_number_integer(), "[{}] config.json: {} is {}: expected an integer", model_, key,
              value->dump());
  const bool in_range = value->is_number_unsigned()
                            ? value->get<std::uint64_t>() < static_cast<std::uint64_t>(kLimit)
                            : value->get<std::int64_t>() > 0;
  ERGON_CHECK(in_range && value->get<std::int64_t>() > 0,
              "[{}] config.json: {} is {}: expected a number in [1, 2^31)", model_, key, value->dump());
  return value->get<std::int64_t>();
}

double ConfigReader::number(const char* key, double fallback) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return fallback;
  ERGON_CHECK(value->is_number(), "[{}] config.json: {} is {}: expected a number", model_, key,
              value->dump());
  return value->get<double>();
}

bool ConfigReader::boolean(const char* key, bool fallback) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return fallback;
  ERGON_CHECK(value->is_boolean(), "[{}] config.json: {} is {}: expected true or false", model_, key,
              value->dump());
  return value->get<bool>();
}

void ConfigReader::expect(const char* key, std::string_view expected) const {
  const nlohmann::json* value = find(key);
  ERGON_CHECK(value == nullptr || *value == expected, "[{}] config.json: {} is {}: only \"{}\" is supported",
              model_, key, value->dump(), expected);
}

void ConfigReader::expect_absent(const char* key) const {
  const nlohmann::json* value = find(key);
  ERGON_CHECK(value == nullptr, "[{}] config.json: {} is {}: not supported", model_, key, value->dump());
}

void ConfigReader::expect_false(const char* key) const {
  ERGON_CHECK(!boolean(key, false), "[{}] config.json: {} is true: only false is supported", model_, key);
}

void check_positive(const char* model, std::initializer_list<std::pair<const char*, std::int64_t>> fields) {
  for (const auto& [name, value] : fields) {
    ERGON_CHECK(value > 0 && value < kLimit, "[{}] {} is {}: expected a number in [1, 2^31)", model, name,
                value);
  }
}

}  // namespace ergon::models
