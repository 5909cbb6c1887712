#pragma once

// Image classification as the trainer's task.

#include "models/data/image_dataset.h"
#include "models/data/loader.h"
#include "models/trainer/trainer.h"

namespace ergon::models {

struct ImageTaskOptions {
  std::int64_t batch = 128;
  std::int64_t eval_batch = 256;
  std::int64_t crop_padding = 0;  // augmentation: random crops of the image with a border of this many pixels
  bool horizontal_flip = false;   // and mirror images
  std::uint64_t seed = 1337;
};

class ImageTask : public trainer::Task {
 public:
  // `model` maps (batch, channels, height, width) to logits (batch, classes), must outlive the task and
  // stay on its device, where batches go; `config` describes it. Throws Error if the two datasets' images or
  // classes differ.
  ImageTask(nn::Layer& model, nlohmann::json config, const data::ImageDataset& training,
            const data::ImageDataset& validation, const ImageTaskOptions& options = {});

  nn::Module& model() override { return model_; }
  nlohmann::json model_config() const override { return config_; }
  // Mean cross-entropy of the next shuffled batch.
  Tensor next_loss() override;
  std::int64_t samples_per_micro_batch() const override { return options_.batch; }
  std::string sample_name() const override { return "images"; }
  // val_loss and val_accuracy (in [0, 1]) over all validation images.
  std::vector<std::pair<std::string, double>> evaluate() override;
  nlohmann::json data_state() const override { return training_.state(); }
  void set_data_state(const nlohmann::json& state) override { training_.set_state(state); }

 private:
  nn::Layer& model_;
  nlohmann::json config_;
  ImageTaskOptions options_;
  data::Loader training_;
  data::ImageSource validation_;
};

}  // namespace ergon::models
