// Trains a residual network on Fashion-MNIST, or on MNIST, which has the same files.

#include <iostream>

#include <CLI/CLI.hpp>

#include "examples/support/cli.h"
#include "models/data/image_dataset.h"
#include "models/vision/resnet.h"
#include "models/vision/training_task.h"
#include "optim/adamw.h"

using namespace ergon;

namespace {

struct Options {
  std::string data = data::kFashionMnistFolder;
  models::ResNetConfig model;
  models::ImageTaskOptions task;
  cli::CommonOptions common;
};

void add_options(CLI::App& app, Options& o) {
  o.common.lr = 4e-3;
  o.common.warmup = 50;
  o.common.weight_decay = 0.05;
  o.common.trainer.max_steps = 1200;
  o.common.trainer.eval_interval = 400;
  cli::add_common_options(app, o.common);
  auto* data = app.add_option_group("Data");
  data->add_option("--data", o.data, "Folder of the four IDX files, plain or .gz")->capture_default_str();
  data->add_option("--batch", o.task.batch, "Images in a micro-batch")->capture_default_str();
  data->add_option("--crop", o.task.crop_padding,
                   "Augmentation: random crops, shifted by up to so many pixels")
      ->capture_default_str();
  data->add_flag("--flip", o.task.horizontal_flip, "Augmentation: mirror images");

  auto* model = app.add_option_group("Model");
  model->add_option("--depth", o.model.depth, "Layers: 8, 14, 20, ...")->capture_default_str();
  model->add_option("--width", o.model.width, "Channels of the first stage")->capture_default_str();
}

void run(const CLI::App& app, Options& o) {
  o.common.trainer.run_config = cli::run_config(app);
  const Device device = cli::device_of(o.common.device);
  manual_seed(o.common.seed);
  trainer::make_output_folder(o.common.trainer.output_dir);
  const data::ImageDataset training = data::load_fashion_mnist(data::Split::train, o.data);
  const data::ImageDataset test = data::load_fashion_mnist(data::Split::test, o.data);
  o.model.in_channels = training.images.size(1);
  o.model.num_classes = training.num_classes;
  models::ResNet model(o.model);
  model.to(device);
  std::cout << fmt::format("{} parameters, {} training and {} test images, {}\n", model.num_parameters(),
                           training.size(), test.size(), cli::set_up_precision(model, o.common.precision));

  o.task.seed = o.common.seed;
  models::ImageTask task(model, model.config(), training, test, o.task);
  const optim::AdamWOptions adamw = cli::set_up_training(model, o.common);
  optim::AdamW optimizer(optim::decay_groups(model.named_parameters(), o.common.weight_decay), adamw);
  const trainer::TrainerResult result =
      trainer::train(task, optimizer, cli::schedule_of(o.common), o.common.trainer);
  cli::print_summary(result, task.sample_name(), device);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{
      "Trains a residual network on labelled images. The output folder receives checkpoints, metrics.jsonl\n"
      "and a loss plot; Ctrl-C saves and stops, --resume goes on."};
  add_options(app, options);
  return cli::run_program(app, argc, argv, [&] { run(app, options); });
}
