#include <csignal>
#include <sstream>

#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/log.h"
#include "models/io/checkpoint.h"
#include "models/io/json.h"
#include "tests/support/reference.h"
#include "tests/support/temp_folder.h"

namespace ergon::io {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::read_text;
using test::TempFolder;
using test::write_text;
using Names = std::vector<std::string>;

constexpr const char* kFiles[] = {"model.safetensors", "config.json", "optimizer.safetensors",
                                  "trainer_state.json", "manifest.json"};

CheckpointParts parts_for(std::int64_t step) {
  const auto seed = static_cast<std::uint64_t>(step) + 1;
  CheckpointParts parts;
  parts.model = {{"wte.weight", test::uniform({7, 5}, {.seed = seed})},
                 {"ln_f.bias", test::uniform({5}, {.dtype = DType::bf16, .seed = seed})}};
  parts.config = {{"model_type", "gpt2"}, {"n_layer", 4}};
  parts.optimizer = {{"wte.weight.exp_avg", test::uniform({7, 5}, {.seed = seed + 100})}};
  parts.trainer_state = {{"step", step}, {"generator", {{"seed", 18446744073709551615u}, {"offset", 3}}}};
  return parts;
}

void expect_holds(const fs::path& path, std::int64_t step) {
  const Checkpoint checkpoint = load_checkpoint(path);
  const CheckpointParts expected = parts_for(step);
  EXPECT_EQ(checkpoint.step, step);
  EXPECT_EQ(checkpoint.config, expected.config);
  EXPECT_EQ(checkpoint.trainer_state, expected.trainer_state);
  ASSERT_EQ(checkpoint.model.size(), expected.model.size());
  for (std::size_t i = 0; i < expected.model.size(); ++i) {
    EXPECT_EQ(checkpoint.model[i].first, expected.model[i].first);
    EXPECT_TRUE(equal_bits(checkpoint.model[i].second, expected.model[i].second));
  }
  ASSERT_EQ(checkpoint.optimizer.size(), 1u);
  EXPECT_TRUE(equal_bits(checkpoint.optimizer[0].second, expected.optimizer[0].second));
}

// What is logged in a scope.
class CapturedLog {
 public:
  CapturedLog() : before_(log().sinks()) {
    log().sinks() = {std::make_shared<spdlog::sinks::ostream_sink_st>(stream_)};
    log().set_pattern("%l: %v");
  }
  ~CapturedLog() { log().sinks() = before_; }
  std::string text() {
    log().flush();
    return stream_.str();
  }

 private:
  std::ostringstream stream_;
  std::vector<spdlog::sink_ptr> before_;
};

TEST(Checkpoint, RoundTripsAndNamesItsFiles) {
  TempFolder folder;
  const fs::path root = folder / "checkpoints";
  const fs::path path = save_checkpoint(root, 100, parts_for(100));
  EXPECT_EQ(path, root / "step-00000100");
  expect_holds(path, 100);
  Names names;
  for (const auto& entry : fs::directory_iterator(path)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  Names expected(std::begin(kFiles), std::end(kFiles));
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(names, expected);
  EXPECT_EQ(latest_checkpoint(root), path);
  EXPECT_EQ(latest_checkpoint(folder / "none"), std::nullopt);
  EXPECT_EQ(latest_checkpoint(folder.path()), std::nullopt);
  EXPECT_EQ(error_of([&] { save_checkpoint(root, -1, {}); }), "[checkpoint] step -1 must not be negative");
}

TEST(Checkpoint, KeepsTheLastOnesAndReplacesASameStep) {
  TempFolder root;
  for (const std::int64_t step : {5, 10, 20, 123456789}) save_checkpoint(root.path(), step, parts_for(step));
  EXPECT_EQ(root.names().size(), 4u);
  fs::create_directory(root / "step-00000020.tmp-1-1-0");  // of an interrupted run
  write_text(root / "step-00000020.tmp-1-1-0" / "model.safetensors", "x");
  write_text(root / "notes.txt", "mine");
  fs::create_directory(root / "step-7");  // not a name that this writes
  // Later steps, of a run that went another way, stay.
  save_checkpoint(root.path(), 15, parts_for(15), 2);
  EXPECT_EQ(root.names(), (Names{"notes.txt", "step-00000010", "step-00000015", "step-00000020",
                                 "step-123456789", "step-7"}));
  save_checkpoint(root.path(), 15, parts_for(16), 1);
  EXPECT_EQ(root.names(), (Names{"notes.txt", "step-00000015", "step-00000020", "step-123456789", "step-7"}));
  EXPECT_EQ(load_checkpoint(root / "step-00000015").trainer_state["step"], 16);
  EXPECT_EQ(latest_checkpoint(root.path()), root / "step-123456789");
}

TEST(Checkpoint, AFailedSaveLeavesEarlierOnesAndNoLeftover) {
  TempFolder root;
  save_checkpoint(root.path(), 1, parts_for(1), 1);
  CheckpointParts large = parts_for(2);
  large.optimizer.emplace_back("big", zeros({100'000}));
  struct rlimit before {};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit limit = {50'000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &limit);
  const std::string error = error_of([&] { save_checkpoint(root.path(), 2, large, 1); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(error,
            "[io] cannot write '" + root.string() + "/step-00000002/optimizer.safetensors': File too large");
  EXPECT_EQ(root.names(), Names{"step-00000001"});
  expect_holds(root / "step-00000001", 1);

  CheckpointParts bad = parts_for(2);
  bad.trainer_state["text"] = "\xff";
  EXPECT_EQ(error_of([&] { save_checkpoint(root.path(), 2, bad, 1); }),
            root.string() + "/step-00000002/trainer_state.json: cannot be written as JSON: "
            "invalid UTF-8 byte at index 0: 0xFF");
  EXPECT_EQ(root.names(), Names{"step-00000001"});
}

TEST(Checkpoint, ErrorsNameTheFileExpectedAndActual) {
  TempFolder root;
  const fs::path path = save_checkpoint(root.path(), 3, parts_for(3));
  const auto error = [&] { return error_of([&] { load_checkpoint(path); }); };
  const std::string where = "[checkpoint] " + path.string();

  const std::string config = read_text(path / "config.json");
  write_text(path / "config.json", config.substr(1));
  EXPECT_EQ(error(), fmt::format("{}/config.json: {} bytes, the manifest says {}: the file is damaged", where,
                                 config.size() - 1, config.size()));
  std::string flipped = config;
  flipped[3] ^= 4;
  write_text(path / "config.json", flipped);
  EXPECT_EQ(error(), fmt::format("{}/config.json: checksum {}, the manifest says {}: the file is damaged",
                                 where, to_hex(checksum(flipped.data(), flipped.size())),
                                 to_hex(checksum(config.data(), config.size()))));
  fs::remove(path / "config.json");
  EXPECT_EQ(error(), "[io] cannot open '" + path.string() + "/config.json': No such file or directory");

  const std::string manifest = read_text(path / "manifest.json");
  write_text(path / "manifest.json", "{}");
  EXPECT_EQ(error(), where + "/manifest.json: 2 bytes are too few for a manifest: the file is damaged");
  std::string changed = manifest;
  changed[10] ^= 1;
  write_text(path / "manifest.json", changed);
  const std::string body = changed.substr(0, changed.size() - 33);
  EXPECT_EQ(error(), where + "/manifest.json: its content has checksum "
                         + to_hex(checksum(body.data(), body.size()))
                         + ", the end of the file says otherwise: the file is damaged");
  write_text(path / "manifest.json", to_text(Manifest{3, {{"config.json", {1, 2}}}}));
  EXPECT_EQ(error(), where + "/manifest.json: does not list model.safetensors");
  fs::remove(path / "manifest.json");
  EXPECT_EQ(error(), where + " is not a checkpoint: it has no manifest.json");
  EXPECT_EQ(error_of([&] { load_checkpoint(root / "none"); }),
            "[checkpoint] " + root.string() + "/none is not a folder");
}

// Every cut and flipped bit is noticed, and the checkpoint before takes over with a warning.
TEST(Checkpoint, DamageAnywhereIsNoticedAndTheOneBeforeIsUsed) {
  TempFolder root;
  const fs::path good = save_checkpoint(root.path(), 1, parts_for(1));
  const fs::path path = save_checkpoint(root.path(), 2, parts_for(2));
  const CapturedLog captured;
  int checked = 0;
  for (const char* name : kFiles) {
    const std::string whole = read_text(path / name);
    const std::size_t step = std::max<std::size_t>(whole.size() / 40, 1);
    Generator generator(7);
    for (std::size_t at = 0; at < whole.size(); at += step) {
      write_text(path / name, whole.substr(0, at));
      EXPECT_NE(error_of([&] { load_checkpoint(path); }), "no error") << name << " cut at " << at;
      std::string flipped = whole;
      const std::size_t bit = generator.below(whole.size() * 8);
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
      write_text(path / name, flipped);
      EXPECT_NE(error_of([&] { load_checkpoint(path); }), "no error") << name << " bit " << bit;
      ++checked;
    }
    for (const std::size_t cut : {whole.size() - 1, whole.size() - 2}) {
      write_text(path / name, whole.substr(0, cut));
      EXPECT_EQ(latest_checkpoint(root.path()), good) << name << " cut at " << cut;
    }
    write_text(path / name, whole + "\n");
    EXPECT_EQ(latest_checkpoint(root.path()), good) << name << " extended";
    write_text(path / name, whole);
    expect_holds(path, 2);
  }
  EXPECT_GE(checked, 200);
  EXPECT_EQ(latest_checkpoint(root.path()), path);
  expect_holds(good, 1);
}

// A process that saves without pause is killed at any moment; what it had finished is there.
TEST(Checkpoint, SurvivesKill) {
  TempFolder root;
  save_checkpoint(root.path(), 0, parts_for(0), 2);
  Generator generator(11);
  std::int64_t step = 0;
  for (int round = 0; round < 20; ++round) {
    int progress[2];
    ASSERT_EQ(::pipe(progress), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      while (true) {
        ++step;
        save_checkpoint(root.path(), step, parts_for(step), 2);
        if (::write(progress[1], &step, sizeof step) != sizeof step) ::_exit(1);
      }
    }
    ::close(progress[1]);
    std::int64_t finished = 0;
    ASSERT_EQ(::read(progress[0], &finished, sizeof finished), static_cast<ssize_t>(sizeof finished));
    ::usleep(static_cast<useconds_t>(generator.below(60'000)));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    std::int64_t next = 0;
    while (::read(progress[0], &next, sizeof next) == sizeof next) finished = next;
    ::close(progress[0]);

    CapturedLog captured;
    const auto latest = latest_checkpoint(root.path());
    ASSERT_TRUE(latest);
    EXPECT_EQ(captured.text(), "");
    step = load_checkpoint(*latest).step;
    EXPECT_TRUE(step == finished || step == finished + 1) << step << " after " << finished;
    expect_holds(*latest, step);
  }
  save_checkpoint(root.path(), step + 1, parts_for(step + 1), 2);
  EXPECT_EQ(root.names().size(), 2u);  // no leftovers
}

TEST(Checkpoint, WarnsOfADamagedNewestOne) {
  TempFolder root;
  save_checkpoint(root.path(), 1, parts_for(1));
  const fs::path path = save_checkpoint(root.path(), 2, parts_for(2));
  fs::remove(path / "manifest.json");
  CapturedLog captured;
  EXPECT_EQ(latest_checkpoint(root.path()), root / "step-00000001");
  EXPECT_EQ(captured.text(),
            "warning: [checkpoint] " + path.string()
                + " is not a checkpoint: it has no manifest.json; trying the checkpoint before it\n");
}

TEST(Checkpoint, DoesNotStartAfreshWhenNoneCanBeRead) {
  TempFolder root;
  for (const std::int64_t step : {1, 2}) {
    fs::resize_file(save_checkpoint(root.path(), step, parts_for(step)) / "model.safetensors", 10);
  }
  CapturedLog captured;
  const std::string error = error_of([&] { latest_checkpoint(root.path()); });
  EXPECT_NE(error.find("step-00000001/model.safetensors: 10 bytes"), std::string::npos) << error;
  EXPECT_NE(error.find("no other checkpoint in " + root.path().string() + " can be read"), std::string::npos)
      << error;
}

TEST(Manifest, RoundTripsAndRejectsWrongContent) {
  Manifest manifest;
  manifest.step = 42;
  manifest.files = {{"a", {10, 0xffffffffffffffff}}, {"b", {0, 0}}};
  const std::string text = to_text(manifest);
  EXPECT_EQ(nlohmann::json::parse(text)["step"], 42);
  const Manifest parsed = parse_manifest(text, "m");
  EXPECT_EQ(parsed.step, 42);
  EXPECT_EQ(parsed.files.at("a").checksum, 0xffffffffffffffff);
  EXPECT_EQ(parsed.files.at("a").size, 10u);

  // With the right checksum, but something else wrong.
  const auto error_in = [](const std::string& body) {
    const std::string whole =
        body + ",\n  \"xxh3\": \"" + to_hex(checksum(body.data(), body.size())) + "\"\n}\n";
    return error_of([&] { parse_manifest(whole, "m"); });
  };
  EXPECT_EQ(error_in("{\"a\": 1"), "[checkpoint] m has no \"ergon_checkpoint\"");
  EXPECT_EQ(error_in("{\"ergon_checkpoint\": 2"),
            "[checkpoint] m: checkpoint format '2', this program reads 1");
  EXPECT_EQ(error_in("{\"ergon_checkpoint\": 1, \"step\": -1"),
            "[checkpoint] m: \"step\" must be a non-negative integer, got '-1'");
  const std::string start = "{\"ergon_checkpoint\": 1, \"step\": 1, \"files\": ";
  EXPECT_EQ(error_in(start + "[]"), "[checkpoint] m: \"files\" must be an object, got 'array'");
  EXPECT_EQ(error_in(start + "{\"../a\": {}}"), "[checkpoint] m: '../a' is not a file name");
  EXPECT_EQ(error_in(start + "{\"a\": 1}"), "[checkpoint] m: file 'a' must be an object, got 'number'");
  EXPECT_EQ(error_in(start + "{\"a\": {\"size\": 1.5}}"),
            "[checkpoint] m: file 'a': \"size\" must be a non-negative integer, got '1.5'");
  EXPECT_EQ(error_in(start + "{\"a\": {\"size\": 1, \"xxh3\": \"12\"}}"),
            "[checkpoint] m: file 'a': \"xxh3\" must be 16 hexadecimal digits, got '12'");
}

}  // namespace
}  // namespace ergon::io
