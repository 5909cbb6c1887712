#include <array>
#include <cmath>
#include <filesystem>
#include <memory>

#include <gtest/gtest.h>
#include <zlib.h>

#include "models/data/idx.h"
#include "models/data/image_dataset.h"
#include "tests/support/reference.h"
#include "tests/support/temp_folder.h"

namespace ergon::data {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::TempFolder;
using test::write_text;

std::string idx_of(const std::vector<std::uint32_t>& sizes, std::string_view data, char type = 8) {
  std::string file = {0, 0, type, static_cast<char>(sizes.size())};
  for (const std::uint32_t size : sizes) {
    for (int shift = 24; shift >= 0; shift -= 8) file += static_cast<char>(size >> shift & 255);
  }
  return file.append(data);
}

std::string gzip(const std::string& data) {
  z_stream stream{};
  deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string packed(deflateBound(&stream, data.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

// What parse_idx says, without "[idx] x: ".
std::string error_for(const std::string& file) {
  const std::string error = error_of([&] { parse_idx(std::as_bytes(std::span(file)), "x"); });
  return error.starts_with("[idx] x: ") ? error.substr(9) : error;
}

TEST(Idx, ReadsPlainAndCompressedFiles) {
  TempFolder folder;
  const std::string file = idx_of({2, 3}, "abcdef");
  write_text(folder / "a", file);
  write_text(folder / "b", gzip(file));
  for (const char* name : {"a", "b"}) {
    const Tensor tensor = read_idx(folder / name);
    EXPECT_EQ(tensor.shape(), (Shape{2, 3}));
    EXPECT_EQ(tensor.to_vector<std::uint8_t>(), (std::vector<std::uint8_t>{'a', 'b', 'c', 'd', 'e', 'f'}));
  }
  EXPECT_EQ(error_of([&] { read_idx(folder / "c"); }),
            "[io] cannot open '" + folder.string() + "/c': No such file or directory");
}

TEST(Idx, ErrorsSayExpectedAndActual) {
  for (const bool packed : {false, true}) {
    const auto error = [&](const std::string& file) { return error_for(packed ? gzip(file) : file); };
    EXPECT_EQ(error(""), "0 bytes, expected at least 4");
    EXPECT_EQ(error("abc"), "3 bytes, expected at least 4");
    EXPECT_EQ(error("PK\x08\x01"), "begins with 50 4b, expected 00 00: not an IDX file");
    EXPECT_EQ(error(idx_of({2}, "abcdefgh", 0x0d)), "element type 0d, expected 08 (unsigned byte)");
    EXPECT_EQ(error(idx_of({}, "")), "0 dimensions, expected 1 to 4");
    EXPECT_EQ(error(idx_of({1, 1, 1, 1, 1}, "a")), "5 dimensions, expected 1 to 4");
    EXPECT_EQ(error(idx_of({2, 3}, "").substr(0, 10)),
              "truncated: it ends within the size of dimension 1 of 2");
    EXPECT_EQ(error(idx_of({2, 0}, "")), "dimension 1 has size 0");
    EXPECT_EQ(error(idx_of({2, 3}, "abcdefg")), "data after the 6 bytes of shape (2, 3)");
    EXPECT_EQ(error(idx_of({~0U, ~0U, ~0U, ~0U}, "abc")),
              "truncated: shape (4294967295, 4294967295, 4294967295, 4294967295) needs more bytes than the "
              "file holds");
  }
  EXPECT_EQ(error_for(idx_of({2, 3}, "abcde")),
            "truncated: shape (2, 3) needs more bytes than the file holds");
  EXPECT_EQ(error_for(gzip(idx_of({2, 3}, "abcde"))),
            "truncated: shape (2, 3) needs 6 bytes of data, the file has 5");
}

TEST(Idx, DamagedGzipDataIsNoticed) {
  const std::string whole = gzip(idx_of({20, 30}, std::string(600, 'x')));
  for (std::size_t size = 2; size < whole.size(); ++size) {
    EXPECT_EQ(error_for(whole.substr(0, size)), "truncated gzip data") << size;
  }
  std::string flipped = whole;
  flipped[whole.size() - 6] ^= 1;  // in the checksum
  EXPECT_EQ(error_for(flipped), "damaged gzip data: incorrect data check");
  flipped = whole;
  flipped[2] = 7;
  EXPECT_EQ(error_for(flipped), "damaged gzip data: unknown compression method");
  EXPECT_EQ(error_for(whole + "more"), "4 bytes after the end of the gzip data");
}

TEST(ImageDataset, ReadsTheRealFashionMnist) {
  if (!fs::exists(kFashionMnistFolder)) GTEST_SKIP() << kFashionMnistFolder << " is not installed";
  const ImageDataset test = load_fashion_mnist(Split::test);
  EXPECT_EQ(test.images.shape(), (Shape{10000, 1, 28, 28}));
  EXPECT_EQ(test.labels.shape(), (Shape{10000}));
  std::array<int, 10> counts{};
  for (const std::int32_t label : test.labels.to_vector<std::int32_t>())
    ++counts[static_cast<std::size_t>(label)];
  for (const int count : counts) EXPECT_EQ(count, 1000);
  EXPECT_EQ(test.labels.select(0, 0).item<std::int64_t>(), 9);  // an ankle boot
}

TEST(ImageDataset, ErrorsNameTheFile) {
  TempFolder folder;
  const std::string root = folder.string();
  const auto error = [&] { return error_of([&] { load_fashion_mnist(Split::train, folder.path()); }); };
  EXPECT_EQ(error(),
            "[images] '" + root + "' has neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz");
  const fs::path images = folder / "train-images-idx3-ubyte", labels = folder / "train-labels-idx1-ubyte.gz";
  write_text(images, idx_of({3, 4}, std::string(12, 'x')));
  write_text(labels, gzip(idx_of({2, 1}, "\1\2")));
  EXPECT_EQ(error(), "[images] " + images.string() + ": shape (3, 4), expected (count, height, width)");
  write_text(images, idx_of({3, 2, 2}, std::string(12, 'x')));
  EXPECT_EQ(error(), "[images] " + labels.string() + ": shape (2, 1), expected (count)");
  write_text(labels, gzip(idx_of({2}, "\1\2")));
  EXPECT_EQ(error(), "[images] " + labels.string() + ": 2 labels, " + images.string() + " has 3 images");
  write_text(labels, gzip(idx_of({3}, "\1\12\2")));
  EXPECT_EQ(error(), "[images] " + labels.string() + ": label 10 of image 1, expected [0, 10)");
  write_text(labels, gzip(idx_of({3}, "\1\11\2")));
  EXPECT_EQ(load_fashion_mnist(Split::train, folder.path()).labels.to_vector<std::int32_t>(),
            (std::vector<std::int32_t>{1, 9, 2}));
}

// Image n has pixels 50 n + its place.
ImageDataset small(std::int64_t count, std::int64_t channels = 1) {
  const std::int64_t pixels = channels * 4 * 5;
  std::vector<std::uint8_t> values;
  std::vector<std::int32_t> labels;
  for (std::int64_t n = 0; n < count; ++n) {
    labels.push_back(static_cast<std::int32_t>(n));
    for (std::int64_t i = 0; i < pixels; ++i) values.push_back(static_cast<std::uint8_t>(1 + 60 * n + i));
  }
  return {from_vector(values, {count, channels, 4, 5}, {.dtype = DType::u8}),
          from_vector(labels, {count}, {.dtype = DType::i32}), count, "small"};
}

TEST(ImageSource, NormalisesEachChannel) {
  const ImageSource source(
      small(2, 2),
      {.batch_size = 2, .sampling = Sampling::sequential, .mean = {0.5F, 0.25F}, .stddev = {0.5F, 2.0F}});
  const Batch batch = source.batch(0);
  EXPECT_EQ(batch.inputs.shape(), (Shape{2, 2, 4, 5}));
  EXPECT_EQ(batch.targets.to_vector<std::int32_t>(), (std::vector<std::int32_t>{0, 1}));
  std::vector<double> expected;
  for (int n = 0; n < 2; ++n) {
    for (int i = 0; i < 40; ++i) {
      const double value = (1 + 60 * n + i) / 255.0;
      expected.push_back(i < 20 ? (value - 0.5) / 0.5 : (value - 0.25) / 2);
    }
  }
  EXPECT_TRUE(
      test::near(batch.inputs, expected, {.rtol = 4 * test::unit_roundoff(DType::f32), .atol = 1e-6}));
}

TEST(ImageSource, AugmentationCropsAndFlipsByTheSeed) {
  const ImageOptions options = {.batch_size = 50,
                                .sampling = Sampling::random,
                                .seed = 3,
                                .mean = {0},
                                .stddev = {1 / 255.0F},
                                .crop_padding = 1,
                                .horizontal_flip = true};
  const ImageSource source(small(3), options);
  std::array<int, 18> seen{};  // (shift_y + 1, shift_x + 1, flip)
  for (std::int64_t k = 0; k < 6; ++k) {
    const Batch batch = source.batch(k);
    EXPECT_TRUE(equal_bits(batch.inputs, source.batch(k).inputs));
    const auto labels = batch.targets.to_vector<std::int32_t>();
    const auto pixels = batch.inputs.to_vector<float>();
    for (std::size_t i = 0; i < labels.size(); ++i) {
      const float* image = pixels.data() + i * 20;
      int matches = 0;
      for (int way = 0; way < 18; ++way) {
        const int shift_y = way / 6 - 1, shift_x = way / 2 % 3 - 1;
        bool same = true;
        for (int y = 0; y < 4; ++y) {
          for (int x = 0; x < 5; ++x) {
            const int from_y = y + shift_y, from_x = (way % 2 == 1 ? 4 - x : x) + shift_x;
            const bool inside = from_y >= 0 && from_y < 4 && from_x >= 0 && from_x < 5;
            const int expected = inside ? 1 + 60 * labels[i] + from_y * 5 + from_x : 0;
            same = same && std::lround(image[y * 5 + x]) == expected;
          }
        }
        if (same) {
          ++matches;
          ++seen[static_cast<std::size_t>(way)];
        }
      }
      EXPECT_EQ(matches, 1);
    }
  }
  for (const int count : seen) EXPECT_GT(count, 0);  // 300 images, 18 ways: about 17 each
  ImageOptions other = options;
  other.seed = 4;
  EXPECT_FALSE(equal_bits(ImageSource(small(3), other).batch(0).inputs, source.batch(0).inputs));
}

TEST(ImageSource, WorksWithALoaderAndRefusesOtherSettings) {
  const auto source = std::make_shared<ImageSource>(small(4), ImageOptions{.batch_size = 2});
  Loader loader(source);
  for (int k = 0; k < 5; ++k) EXPECT_TRUE(equal_bits(loader.next().inputs, source->batch(k).inputs));
  EXPECT_DOUBLE_EQ(loader.epochs(), 2.5);
  Loader flipped(
      std::make_shared<ImageSource>(small(4), ImageOptions{.batch_size = 2, .horizontal_flip = true}));
  EXPECT_EQ(error_of([&] { flipped.set_state(nlohmann::json::parse(loader.state().dump())); }),
            "[loader] saved with horizontal_flip 'false', this run has 'true'");
  Loader same(std::make_shared<ImageSource>(small(4), ImageOptions{.batch_size = 2}));
  same.set_state(nlohmann::json::parse(loader.state().dump()));
  EXPECT_TRUE(equal_bits(same.next().inputs, source->batch(5).inputs));
}

TEST(ImageSource, ErrorsNameWhatDoesNotFit) {
  const auto error = [](ImageDataset dataset, ImageOptions options) {
    return error_of([&] { ImageSource(dataset, options); });
  };
  EXPECT_EQ(error(small(2), {.stddev = {0}}), "[images] stddev 0 must be positive");
  EXPECT_EQ(error(small(2, 3), {.mean = {0, 0}}), "[images] 2 values of mean for 3 channels");
  EXPECT_EQ(error(small(2), {.crop_padding = -1}), "[images] crop_padding -1 must not be negative");
  EXPECT_EQ(error(small(2), {.batch_size = 0}), "[sampler] batch_size 0 must be positive");
  ImageDataset mixed = small(2);
  mixed.labels = small(3).labels;
  EXPECT_EQ(error(mixed, {}), "[images] small: labels are (3,) of i32, expected (2,) of i32");
  mixed.images = ones({2, 3});
  EXPECT_EQ(error(mixed, {}),
            "[images] small: images are (2, 3) of f32, expected (count, channels, height, width) of u8");
}

}  // namespace
}  // namespace ergon::data
