#include "models/vision/training_task.h"

#include <utility>

#include "ops/cross_entropy.h"
#include "ops/reduce.h"

namespace ergon::models {
namespace {

// Checked against the training set before a source is made of it.
const data::ImageDataset& checked(const data::ImageDataset& validation, const data::ImageDataset& training) {
  Shape expected = training.images.shape(), actual = validation.images.shape();
  ERGON_CHECK(expected.size() == 4 && actual.size() == 4,
              "[images] {} and {}: images of shapes {} and {}, expected (count, channels, height, width)",
              training.name, validation.name, expected, actual);
  expected[0] = actual[0];
  ERGON_CHECK(expected == actual && training.num_classes == validation.num_classes,
              "[images] {} has images {} of {} classes, {} images {} of {} classes: expected the same",
              training.name, training.images.shape(), training.num_classes, validation.name, actual,
              validation.num_classes);
  return validation;
}

}  // namespace

ImageTask::ImageTask(nn::Layer& model, nlohmann::json config, const data::ImageDataset& training,
                     const data::ImageDataset& validation, const ImageTaskOptions& options)
    : model_(model),
      config_(std::move(config)),
      options_(options),
      training_(std::make_shared<data::ImageSource>(
                    training, data::ImageOptions{.batch_size = options.batch,
                                                 .seed = options.seed,
                                                 .crop_padding = options.crop_padding,
                                                 .horizontal_flip = options.horizontal_flip}),
                /*prefetch=*/2, model.device()),
      validation_(checked(validation, training), data::ImageOptions{.batch_size = options.eval_batch,
                                                                    .sampling = data::Sampling::sequential}) {
}

Tensor ImageTask::next_loss() {
  const data::Batch batch = training_.next();
  return ops::cross_entropy(model_(batch.inputs), batch.targets);
}

std::vector<std::pair<std::string, double>> ImageTask::evaluate() {
  double loss = 0;
  std::int64_t correct = 0, count = 0;
  for (std::int64_t k = 0; k < validation_.num_batches(); ++k) {
    const data::Batch batch = validation_.batch(k).to(model_.device());
    const Tensor logits = model_(batch.inputs);
    loss += ops::cross_entropy(logits, batch.targets, {.reduction = ops::Reduction::sum}).item<double>();
    const std::vector<std::int64_t> predicted = ops::argmax(logits, 1).to_vector<std::int64_t>(),
                                    targets = batch.targets.to_vector<std::int64_t>();
    for (std::size_t i = 0; i < targets.size(); ++i) correct += predicted[i] == targets[i];
    count += batch.targets.numel();
  }
  const double images = static_cast<double>(count);
  return {{"val_loss", loss / images}, {"val_accuracy", static_cast<double>(correct) / images}};
}

}  // namespace ergon::models
