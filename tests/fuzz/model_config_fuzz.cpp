// Any text as a model's config.json: a configuration that can be written and read again, or refused.

#include "models/io/json.h"
#include "models/language/gpt2.h"
#include "models/language/llama.h"
#include "tests/fuzz/fuzz.h"

namespace {

template <class Config>
void parse(const nlohmann::json& json) {
  ergon::fuzz::expect_value_or_error([&] {
    const nlohmann::json written = Config::from_json(json).to_json();
    if (Config::from_json(written).to_json() != written) std::abort();
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ergon;
  fuzz::expect_value_or_error([&] {
    const nlohmann::json json = io::parse_json(fuzz::as_text(data, size), "input");
    parse<models::GPT2Config>(json);
    parse<models::LlamaConfig>(json);
  });
  return 0;
}
