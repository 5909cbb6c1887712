// Any text as trainer_state.json: JSON or refused, and its loader state taken or refused.

#include "models/data/loader.h"
#include "models/io/json.h"
#include "tests/fuzz/fuzz.h"

namespace {

using nlohmann::json;

class FakeSource final : public ergon::data::BatchSource {
 public:
  ergon::data::Batch batch(std::int64_t) const override { return {}; }
  std::int64_t num_batches() const override { return INT64_MAX; }
  double epochs(std::int64_t) const override { return 0; }
  json settings() const override { return {{"seed", 1}, {"batch_size", 12}, {"sampling", "random"}}; }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ergon;
  fuzz::expect_value_or_error([&] {
    const json state = io::parse_json(fuzz::as_text(data, size), "input");
    if (io::parse_json(io::to_text(state, "copy"), "copy") != state) std::abort();
    data::Loader loader(std::make_shared<FakeSource>(), 0);
    loader.set_state(state.is_object() && state.contains("loader") ? state["loader"] : state);
    loader.next();
  });
  return 0;
}
