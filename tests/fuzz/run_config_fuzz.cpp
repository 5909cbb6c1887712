// Any text as the TOML file of --config: options that are set, or a CLI::ParseError.

#include <sstream>

#include <CLI/CLI.hpp>

#include "examples/support/cli.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ergon;
  cli::CommonOptions options;
  CLI::App app("fuzz");
  cli::add_common_options(app, options);
  std::string text_option;
  app.add_option("--data", text_option)->required();
  std::istringstream stream{std::string(fuzz::as_text(data, size))};
  try {
    app.parse_from_stream(stream);
    fuzz::expect_value_or_error([&] { cli::schedule_of(options); });
    cli::run_config(app);
  } catch (const CLI::ParseError&) {
  }
  return 0;
}
