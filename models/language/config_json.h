#pragma once

// Reading a model's config.json with errors that name the model, the key, the expected and the actual.

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace ergon::models {

class ConfigReader {
 public:
  // `model` is named in errors. Throws Error unless `json` is an object.
  ConfigReader(std::string model, const nlohmann::json& json);

  // An integer in (0, 2^31). Missing or null: the fallback, or an Error if there is none.
  std::int64_t integer(const char* key, std::optional<std::int64_t> fallback = std::nullopt) const;
  double number(const char* key, double fallback) const;
  bool boolean(const char* key, bool fallback) const;
  // Throws Error unless the key is missing, null or has this value.
  void expect(const char* key, std::string_view value) const;
  void expect_absent(const char* key) const;
  void expect_false(const char* key) const;

 private:
  const nlohmann::json* find(const char* key) const;  // null when missing or null

  std::string model_;
  const nlohmann::json& json_;
};

// Throws Error naming the first field that is not in (0, 2^31).
void check_positive(const char* model, std::initializer_list<std::pair<const char*, std::int64_t>> fields);

}  // namespace ergon::models
