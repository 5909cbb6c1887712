#include "models/data/image_dataset.h"

#include <utility>

#include "core/error.h"
#include "models/data/idx.h"

namespace ergon::data {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kValues = 256;  // of a pixel

// (count) u8 → (count) i32, checked.
Tensor to_labels(const Tensor& bytes, std::int64_t num_classes, const fs::path& path) {
  const std::int64_t count = bytes.numel();
  Tensor labels = empty({count}, {.dtype = DType::i32});
  const std::uint8_t* in = bytes.data<std::uint8_t>();
  std::int32_t* out = labels.data<std::int32_t>();
  for (std::int64_t i = 0; i < count; ++i) {
    ERGON_CHECK(in[i] < num_classes, "[images] {}: label {} of image {}, expected [0, {})", path.string(),
                in[i], i, num_classes);
    out[i] = in[i];
  }
  return labels;
}

// FOLDER/NAME, or FOLDER/NAME.gz if only that exists.
fs::path plain_or_gz(const fs::path& folder, const std::string& name) {
  std::error_code ignored;
  fs::path plain = folder / name;
  fs::path packed = folder / (name + ".gz");
  if (fs::exists(plain, ignored)) return plain;
  ERGON_CHECK(fs::exists(packed, ignored), "[images] '{}' has neither {} nor {}", folder.string(), name,
              packed.filename().string());
  return packed;
}

float for_channel(const std::vector<float>& values, std::int64_t channel) {
  return values.size() == 1 ? values[0] : values[static_cast<std::size_t>(channel)];
}

const ImageDataset& checked(const ImageDataset& dataset, const ImageOptions& options) {
  const Tensor& images = dataset.images;
  ERGON_CHECK(images.dim() == 4 && images.dtype() == DType::u8 && images.is_contiguous(),
              "[images] {}: images are {} of {}, expected (count, channels, height, width) of u8",
              dataset.name, images.shape(), ergon::name_of(images.dtype()));
  ERGON_CHECK(dataset.labels.shape() == (Shape{images.size(0)}) && dataset.labels.dtype() == DType::i32,
              "[images] {}: labels are {} of {}, expected ({},) of i32", dataset.name, dataset.labels.shape(),
              ergon::name_of(dataset.labels.dtype()), images.size(0));
  ERGON_CHECK(options.crop_padding >= 0, "[images] crop_padding {} must not be negative",
              options.crop_padding);
  const std::int64_t channels = images.size(1);
  for (const auto& [name, values] : {std::pair("mean", options.mean), std::pair("stddev", options.stddev)}) {
    const auto given = static_cast<std::int64_t>(values.size());
    ERGON_CHECK(given == 1 || given == channels, "[images] {} values of {} for {} channels", given, name,
                channels);
  }
  for (const float value : options.stddev) {
    ERGON_CHECK(value > 0, "[images] stddev {} must be positive", value);
  }
  return dataset;
}

}  // namespace

ImageDataset load_idx_images(const fs::path& images, const fs::path& labels, std::int64_t num_classes) {
  const Tensor pixels = read_idx(images);
  ERGON_CHECK(pixels.dim() == 3, "[images] {}: shape {}, expected (count, height, width)", images.string(),
              pixels.shape());
  const Tensor label_bytes = read_idx(labels);
  ERGON_CHECK(label_bytes.dim() == 1, "[images] {}: shape {}, expected (count)", labels.string(),
              label_bytes.shape());
  ERGON_CHECK(label_bytes.size(0) == pixels.size(0), "[images] {}: {} labels, {} has {} images",
              labels.string(), label_bytes.size(0), images.string(), pixels.size(0));
  return {pixels.unsqueeze(1), to_labels(label_bytes, num_classes, labels), num_classes, images.string()};
}

ImageDataset load_fashion_mnist(Split split, const fs::path& folder) {
  const std::string prefix = split == Split::train ? "train" : "t10k";
  const fs::path images = plain_or_gz(folder, prefix + "-images-idx3-ubyte");
  const fs::path labels = plain_or_gz(folder, prefix + "-labels-idx1-ubyte");
  return load_idx_images(images, labels, 10);
}

ImageSource::ImageSource(ImageDataset dataset, ImageOptions options)
    : dataset_(std::move(dataset)),
      options_(std::move(options)),
      sampler_(checked(dataset_, options_).size(), {.sampling = options_.sampling,
                                                    .batch_size = options_.batch_size,
                                                    .seed = options_.seed,
                                                    .rank = options_.rank,
                                                    .world_size = options_.world_size}) {
  for (std::int64_t channel = 0; channel < dataset_.images.size(1); ++channel) {
    const float mean = for_channel(options_.mean, channel), stddev = for_channel(options_.stddev, channel);
    for (std::int64_t value = 0; value < kValues; ++value) {
      normalised_.push_back((static_cast<float>(value) / 255.0F - mean) / stddev);
    }
  }
}

Batch ImageSource::batch(std::int64_t k) const {
  const std::int64_t batch_size = sampler_.batch_size(k);
  const Shape& shape = dataset_.images.shape();
  Batch batch{empty({batch_size, shape[1], shape[2], shape[3]}), empty({batch_size}, {.dtype = DType::i32})};
  float* out = batch.inputs.data<float>();
  std::int32_t* targets = batch.targets.data<std::int32_t>();
  for (std::int64_t i = 0; i < batch_size; ++i) {
    const std::int64_t example = sampler_.example(k, i);
    write_image(k, i, example, out + i * shape[1] * shape[2] * shape[3]);
    targets[i] = dataset_.labels.data<std::int32_t>()[example];
  }
  return batch;
}

void ImageSource::write_image(std::int64_t k, std::int64_t i, std::int64_t example, float* out) const {
  const Shape& shape = dataset_.images.shape();
  const std::int64_t channels = shape[1], height = shape[2], width = shape[3];
  const std::uint8_t* image = dataset_.images.data<std::uint8_t>() + example * channels * height * width;
  std::int64_t shift_y = 0, shift_x = 0;
  bool flip = false;
  if (options_.crop_padding > 0 || options_.horizontal_flip) {
    Generator generator = sampler_.generator(k, i);
    const auto shifts = static_cast<std::uint64_t>(2 * options_.crop_padding + 1);
    shift_y = static_cast<std::int64_t>(generator.below(shifts)) - options_.crop_padding;
    shift_x = static_cast<std::int64_t>(generator.below(shifts)) - options_.crop_padding;
    flip = options_.horizontal_flip && generator.below(2) == 1;
  }
  for (std::int64_t channel = 0; channel < channels; ++channel) {
    const float* value_of = normalised_.data() + channel * kValues;
    for (std::int64_t y = 0; y < height; ++y) {
      const std::int64_t from_y = y + shift_y;
      const bool row_inside = 0 <= from_y && from_y < height;
      const std::uint8_t* row = image + (channel * height + (row_inside ? from_y : 0)) * width;
      for (std::int64_t x = 0; x < width; ++x) {
        const std::int64_t from_x = (flip ? width - 1 - x : x) + shift_x;
        const bool inside = row_inside && 0 <= from_x && from_x < width;
        *out++ = value_of[inside ? row[from_x] : 0];
      }
    }
  }
}

nlohmann::json ImageSource::settings() const {
  nlohmann::json settings = sampler_.settings();
  settings["crop_padding"] = options_.crop_padding;
  settings["horizontal_flip"] = options_.horizontal_flip;
  settings["mean"] = options_.mean;
  settings["stddev"] = options_.stddev;
  return settings;
}

}  // namespace ergon::data
