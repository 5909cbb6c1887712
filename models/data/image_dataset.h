#pragma once

// Labelled images of one size.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "models/data/loader.h"
#include "models/data/sampler.h"

namespace ergon::data {

struct ImageDataset {
  Tensor images;  // (count, channels, height, width) u8
  Tensor labels;  // (count) i32, in [0, num_classes)
  std::int64_t num_classes = 0;
  std::string name;

  std::int64_t size() const { return images.size(0); }
};

// From a pair of IDX files: images (count, height, width), labels (count). Throws Error that names the file
// for shapes or counts that do not fit, and for a label out of range.
ImageDataset load_idx_images(const std::filesystem::path& images, const std::filesystem::path& labels,
                             std::int64_t num_classes);

enum class Split { train, test };

// Where Debian's dataset-fashion-mnist puts its files.
inline constexpr const char* kFashionMnistFolder = "/usr/share/datasets/fashion-mnist";

// Fashion-MNIST, or MNIST, which has the same files: train-images-idx3-ubyte, train-labels-idx1-ubyte,
// t10k-..., each plain or with ".gz".
ImageDataset load_fashion_mnist(Split split, const std::filesystem::path& folder = kFashionMnistFolder);

struct ImageOptions {
  std::int64_t batch_size = 64;  // of this rank
  Sampling sampling = Sampling::shuffled;
  std::uint64_t seed = 0;
  int rank = 0;
  int world_size = 1;
  // Pixels become (value / 255 - mean) / stddev; one value for all channels, or one each. The defaults are
  // Fashion-MNIST's training set's.
  std::vector<float> mean = {0.2860F};
  std::vector<float> stddev = {0.3530F};
  // Augmentation, for training: a crop of the image's size from the image with a black border of this many
  // pixels, and a mirror image half of the time.
  std::int64_t crop_padding = 0;
  bool horizontal_flip = false;
};

// inputs (batch, channels, height, width) f32, targets (batch) i32.
class ImageSource final : public BatchSource {
 public:
  // Throws Error, naming the dataset or the option, for what does not fit together.
  explicit ImageSource(ImageDataset dataset, ImageOptions options = {});

  Batch batch(std::int64_t k) const override;
  std::int64_t num_batches() const override { return sampler_.num_batches(); }
  double epochs(std::int64_t k) const override { return sampler_.epochs(k); }
  nlohmann::json settings() const override;

 private:
  // Element i of batch k.
  void write_image(std::int64_t k, std::int64_t i, std::int64_t example, float* out) const;

  ImageDataset dataset_;
  ImageOptions options_;
  Sampler sampler_;
  std::vector<float> normalised_;  // (channels, 256): what each value of a pixel becomes
};

}  // namespace ergon::data
