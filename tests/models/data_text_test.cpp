#include <chrono>
#include <filesystem>
#include <numeric>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "models/data/sequence_source.h"
#include "models/data/text_dataset.h"
#include "models/io/safetensors.h"
#include "tests/support/reference.h"
#include "tests/support/temp_folder.h"

namespace ergon::data {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::TempFolder;
using test::write_text;

const ByteTokenizer kBytes;

// Words of one letter and its place: tokens beyond a byte, and an end of text.
class WideTokenizer final : public Tokenizer {
 public:
  std::string name() const override { return "wide"; }
  std::int64_t vocab_size() const override { return 1000; }
  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> tokens;
    for (const char c : text) tokens.push_back(c == '!' ? 1000 : 500 + static_cast<unsigned char>(c));
    return tokens;
  }
  std::string decode(std::span<const std::int32_t>) const override { return {}; }
  std::optional<std::int32_t> end_of_text() const override { return 999; }
};

std::vector<std::int32_t> tokens_of(const TokenStream& stream) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(stream.size()));
  stream.read(0, stream.size(), tokens.data());
  return tokens;
}
std::string text_of(const TokenStream& stream) { return kBytes.decode(tokens_of(stream)); }

std::string numbers(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += std::to_string(i) + (i % 7 == 0 ? "\n" : " ");
  return text;
}

TEST(ByteTokenizer, RoundTripsEveryByte) {
  std::string text(256, '\0');
  std::iota(text.begin(), text.end(), '\0');
  EXPECT_EQ(kBytes.encode(text)[255], 255);
  EXPECT_EQ(kBytes.decode(kBytes.encode(text)), text);
  EXPECT_EQ(error_of([] {
              kBytes.decode(std::vector<std::int32_t>{1, 256});
            }),
            "[byte tokenizer] token 256 at 1: expected [0, 256)");
}

TEST(TextDataset, SplitsAFileAsTrainThenValidation) {
  TempFolder folder;
  const std::string text = numbers(1000);
  write_text(folder / "a.txt", text);
  for (const fs::path& cache : {fs::path(), folder / "cache" / "deep"}) {
    const TextDataset data = load_text(folder / "a.txt", kBytes, {.cache_folder = cache});
    const auto split = static_cast<std::size_t>(0.9 * static_cast<double>(text.size()));
    EXPECT_EQ(text_of(data.train), text.substr(0, split));
    EXPECT_EQ(text_of(data.validation), text.substr(split));
    EXPECT_EQ(data.vocab_size, 256);
  }
  EXPECT_EQ(load_text(folder / "a.txt", kBytes, {.validation_fraction = 0}).validation.size(), 0);
}

TEST(TextDataset, ReadsAFolderInOrderWithSubfoldersWithoutHiddenFiles) {
  TempFolder folder;
  const fs::path source = folder / "texts";
  fs::create_directories(source / "b");
  fs::create_directories(source / ".git");
  write_text(source / "c.txt", "third");
  write_text(source / "a.txt", "first ");
  write_text(source / "b" / "x.txt", "second ");
  write_text(source / "empty.txt", "");
  write_text(source / ".hidden", "no");
  write_text(source / ".git" / "config", "no");
  EXPECT_EQ(text_of(load_text(source, kBytes, {.validation_fraction = 0}).train), "first second third");
  EXPECT_EQ(text_of(load_text(source.string() + "/", kBytes,
                              {.cache_folder = folder / "cache", .validation_fraction = 0})
                        .train),
            "first second third");
}

TEST(TextDataset, ShardsHoldTheSameTokensAndAreReused) {
  TempFolder folder;
  const std::string text = numbers(3000);
  write_text(folder / "a.txt", text);
  const TextOptions options = {
      .cache_folder = folder / "cache", .validation_fraction = 0, .shard_tokens = 1000};
  EXPECT_EQ(text_of(load_text(folder / "a.txt", kBytes, options).train), text);
  const auto shards = [&] {
    std::vector<fs::path> paths = io::list_folder(folder / "cache");
    return paths;
  };
  const std::size_t count = (text.size() + 999) / 1000;
  ASSERT_EQ(shards().size(), count);
  const io::SafetensorsFile shard(shards().back());
  EXPECT_EQ(shard.metadata().at("last"), "true");
  EXPECT_EQ(shard.metadata().at("tokenizer"), "byte");
  EXPECT_EQ(shard.metadata().at("vocab_size"), "256");
  EXPECT_EQ(shard.tensor("tokens").dtype(), DType::u8);

  const auto written = fs::last_write_time(shards()[0]);
  EXPECT_EQ(text_of(load_text(folder / "a.txt", kBytes, options).train), text);
  EXPECT_EQ(fs::last_write_time(shards()[0]), written) << "made again without need";

  // A changed source, also if only the time tells; shorter: the surplus shards go.
  write_text(folder / "a.txt", "short");
  EXPECT_EQ(text_of(load_text(folder / "a.txt", kBytes, options).train), "short");
  EXPECT_EQ(shards().size(), 1u);
  write_text(folder / "a.txt", "SHORT");
  fs::last_write_time(folder / "a.txt", fs::file_time_type::clock::now() + std::chrono::seconds(5));
  EXPECT_EQ(text_of(load_text(folder / "a.txt", kBytes, options).train), "SHORT");

  // Other tokenizers and other sources have their own.
  load_text(folder / "a.txt", WideTokenizer(), options);
  write_text(folder / "b.txt", "other");
  load_text(folder / "b.txt", kBytes, options);
  EXPECT_EQ(shards().size(), 3u);
}

TEST(TextDataset, DamagedOrMissingShardsAreMadeAgain) {
  TempFolder folder;
  const std::string text = numbers(500);
  write_text(folder / "a.txt", text);
  const TextOptions options = {
      .cache_folder = folder / "cache", .validation_fraction = 0, .shard_tokens = 700};
  load_text(folder / "a.txt", kBytes, options);
  const std::vector<fs::path> shards = io::list_folder(folder / "cache");
  ASSERT_EQ(shards.size(), 3u);
  for (const fs::path& shard : shards) {
    write_text(shard, test::read_text(shard).substr(0, 500));
    EXPECT_EQ(text_of(load_text(folder / "a.txt", kBytes, options).train), text);
    fs::remove(shard);
    EXPECT_EQ(text_of(load_text(folder / "a.txt", kBytes, options).train), text);
    // Of another source: a mixture, as an interruption leaves it.
    io::write_safetensors(shard, {{"tokens", zeros({3}, {.dtype = DType::u8})}}, {{"source", "?"}});
    EXPECT_EQ(text_of(load_text(folder / "a.txt", kBytes, options).train), text);
  }
}

TEST(TextDataset, WideVocabulariesAreStoredAsI32WithEndOfText) {
  TempFolder folder;
  fs::create_directory(folder / "texts");
  write_text(folder / "texts" / "a", "ab");
  write_text(folder / "texts" / "b", "c");
  const TextDataset data = load_text(folder / "texts", WideTokenizer(),
                                     {.cache_folder = folder / "cache", .validation_fraction = 0});
  EXPECT_EQ(tokens_of(data.train), (std::vector<std::int32_t>{597, 598, 999, 599, 999}));
  EXPECT_EQ(io::SafetensorsFile(io::list_folder(folder / "cache")[0]).tensor("tokens").dtype(), DType::i32);
  write_text(folder / "texts" / "c", "!");
  EXPECT_EQ(error_of([&] { load_text(folder / "texts", WideTokenizer()); }),
            "[text] tokenizer 'wide' gave token 1000, expected [0, 1000)");
}

TEST(TextDataset, LongTextsAreEncodedInPieces) {
  TempFolder folder;
  const std::string text = numbers(2'000'000);  // 13 MB
  write_text(folder / "a.txt", text);
  const TextDataset data = load_text(folder / "a.txt", kBytes, {.validation_fraction = 0});
  EXPECT_TRUE(text_of(data.train) == text);
}

TEST(TextDataset, ErrorsNameTheSource) {
  TempFolder folder;
  const auto error = [&](const fs::path& source, const TextOptions& options = {}) {
    return error_of([&] { load_text(source, kBytes, options); });
  };
  const std::string root = folder.string();
  EXPECT_EQ(error(folder / "none"), "[io] cannot open '" + root + "/none': No such file or directory");
  write_text(folder / "empty", "");
  EXPECT_EQ(error(folder / "empty"), "[text] '" + root + "/empty' is empty: expected text");
  fs::create_directory(folder / "texts");
  EXPECT_EQ(error(folder / "texts"), "[text] folder '" + root + "/texts' holds no files: expected text");
  write_text(folder / "texts" / "a", "");
  EXPECT_EQ(error(folder / "texts"),
            "[text] the 1 file in folder '" + root + "/texts' is empty: expected text");
  write_text(folder / "texts" / "b", "");
  EXPECT_EQ(error(folder / "texts"),
            "[text] the 2 files in folder '" + root + "/texts' are empty: expected text");
  write_text(folder / "texts" / "b", "text");
  EXPECT_EQ(error(folder / "texts", {.cache_folder = folder / "texts" / "cache"}),
            "[text] cache folder '" + root + "/texts/cache' lies in the text folder '" + root
                + "/texts': choose another");
  EXPECT_EQ(error(folder / "texts", {.cache_folder = folder / "empty" / "cache"}),
            "[io] cannot create folder '" + root + "/empty/cache': Not a directory");
  EXPECT_EQ(error(folder / "texts", {.validation_fraction = 1}),
            "[text] validation_fraction 1: expected [0, 1)");
  EXPECT_EQ(error(folder / "texts", {.shard_tokens = 0}), "[text] shard_tokens 0 must be positive");
  const TextDataset data = load_text(folder / "texts", kBytes);
  EXPECT_EQ(error_of([&] { data.check_vocabulary(65); }),
            "[text] tokenizer 'byte' has a vocabulary of 256, the model one of 65: the model's must not be "
            "smaller");
  data.check_vocabulary(256);
  data.check_vocabulary(50304);
}

TEST(TokenStream, ReadsAcrossShardsAndChecks) {
  const TokenStream stream(
      {from_vector<std::uint8_t>({0, 1, 2}, {3}, {.dtype = DType::u8}), empty({0}, {.dtype = DType::u8}),
       from_vector<std::int32_t>({3, 4}, {2}, {.dtype = DType::i32}),
       from_vector<std::uint8_t>({5, 60}, {2}, {.dtype = DType::u8})},
      50, "s");
  for (std::int64_t begin = 0; begin <= 6; ++begin) {
    for (std::int64_t count = 0; begin + count <= 6; ++count) {
      std::vector<std::int32_t> got(static_cast<std::size_t>(count)), expected(got.size());
      std::iota(expected.begin(), expected.end(), static_cast<std::int32_t>(begin));
      stream.read(begin, count, got.data());
      EXPECT_EQ(got, expected);
      stream.slice(1, 7, "part")
          .read(std::max<std::int64_t>(begin - 1, 0), std::min<std::int64_t>(count, 5), got.data());
    }
  }
  std::vector<std::int32_t> out(8);
  EXPECT_EQ(error_of([&] { stream.read(4, 3, out.data()); }), "[tokens] s: token 60 at 6, expected [0, 50)");
  EXPECT_EQ(error_of([&] { stream.read(6, 2, out.data()); }), "[tokens] s: tokens [6, 8) of 7");
  EXPECT_EQ(error_of([&] { stream.slice(0, 3, "p").read(2, 2, out.data()); }),
            "[tokens] p: tokens [2, 4) of 3");
  EXPECT_EQ(error_of([&] { stream.slice(3, 2, ""); }), "[tokens] s: slice [3, 2) of 7 tokens");
  EXPECT_EQ(error_of([] {
              TokenStream({zeros({2, 2})}, 1, "s");
            }),
            "[tokens] s: a shard is (2, 2) of f32, expected (tokens) of u8 or i32");
}

// A text whose token at place i tells i.
TokenStream counting(std::int32_t size) {
  std::vector<std::int32_t> values(static_cast<std::size_t>(size));
  std::iota(values.begin(), values.end(), 0);
  return TokenStream({from_vector(values, {size}, {.dtype = DType::i32})}, size, "counting");
}

TEST(SequenceSource, TargetsAreTheNextTokens) {
  for (const Sampling sampling : {Sampling::random, Sampling::shuffled, Sampling::sequential}) {
    const SequenceSource source(counting(1000), {.batch_size = 4, .seqlen = 16, .sampling = sampling});
    for (std::int64_t k = 0; k < 10; ++k) {
      const Batch batch = source.batch(k);
      EXPECT_EQ(batch.inputs.shape(), (Shape{4, 16}));
      EXPECT_EQ(batch.inputs.dtype(), DType::i32);
      EXPECT_EQ(batch.targets.dtype(), DType::i32);
      const auto inputs = batch.inputs.to_vector<std::int32_t>();
      const auto targets = batch.targets.to_vector<std::int32_t>();
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        EXPECT_EQ(inputs[i], inputs[i - i % 16] + static_cast<std::int32_t>(i % 16));
        EXPECT_EQ(targets[i], inputs[i] + 1);
      }
    }
  }
}

TEST(SequenceSource, RandomCropsReachBothEndsAndOnlyThose) {
  const SequenceSource source(counting(20), {.batch_size = 100, .seqlen = 16});
  std::vector<std::int32_t> starts;
  for (std::int64_t k = 0; k < 5; ++k) {
    const auto inputs = source.batch(k).inputs.to_vector<std::int32_t>();
    for (std::size_t i = 0; i < inputs.size(); i += 16) starts.push_back(inputs[i]);
  }
  std::sort(starts.begin(), starts.end());
  EXPECT_EQ(starts.front(), 0);
  EXPECT_EQ(starts.back(), 3);  // its last target is token 19
  EXPECT_DOUBLE_EQ(source.epochs(2), 2 * 100 * 16 / 20.0);
}

TEST(SequenceSource, SequentialEvaluationSeesEveryWholeWindowOnce) {
  const SequenceSource source(counting(16 * 10 + 5),
                              {.batch_size = 4, .seqlen = 16, .sampling = Sampling::sequential});
  ASSERT_EQ(source.num_batches(), 3);
  std::vector<std::int32_t> seen;
  for (std::int64_t k = 0; k < 3; ++k) {
    const auto inputs = source.batch(k).inputs.to_vector<std::int32_t>();
    seen.insert(seen.end(), inputs.begin(), inputs.end());
  }
  std::vector<std::int32_t> expected(160);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(seen, expected);
  EXPECT_EQ(error_of([&] { source.batch(3); }), "[sampler] batch 3: there are 3");
}

TEST(SequenceSource, TooShortATextIsNamed) {
  TempFolder folder;
  write_text(folder / "a.txt", std::string(100, 'x'));
  const TextDataset data = load_text(folder / "a.txt", kBytes);
  EXPECT_EQ(error_of([&] { SequenceSource(data.validation, {.seqlen = 64}); }),
            "[text] " + folder.string()
                + "/a.txt (validation part) has 10 tokens: a context of 64 needs at least 65");
  EXPECT_EQ(error_of([&] { SequenceSource(data.train, {.seqlen = 0}); }), "[text] seqlen 0 must be positive");
  EXPECT_EQ(SequenceSource(data.train, {.batch_size = 1, .seqlen = 89}).batch(0).inputs.shape(),
            (Shape{1, 89}));
}

}  // namespace
}  // namespace ergon::data
