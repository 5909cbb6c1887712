#include "models/trainer/trainer.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <gtest/gtest.h>

#include "models/nn/layers.h"
#include "models/trainer/loss_plot.h"
#include "models/trainer/metrics_log.h"
#include "ops/arithmetic.h"
#include "ops/reduce.h"
#include "optim/adamw.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

std::string scratch(const std::string& name) {
  const std::string path = testing::TempDir() + "/trainer_" + name;
  std::filesystem::remove_all(path);
  return path;
}

std::string read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// Fits y = 2 x with noise from the default generator; batch k from a counter, as a loader would.
class LineTask : public trainer::Task {
 public:
  explicit LineTask(std::int64_t nan_at = -1) : layer_(1, 1), nan_at_(nan_at) {}
  nn::Module& model() override { return layer_; }
  nlohmann::json model_config() const override { return {{"model_type", "line"}}; }
  Tensor next_loss() override {
    EXPECT_TRUE(layer_.is_training());
    Generator generator(static_cast<std::uint64_t>(position_));
    const Tensor x = rand({8, 1}, {}, generator);
    const Tensor difference = layer_(x) - x * 2.0 + rand({8, 1}) * 0.01;
    const Tensor loss = ops::mean(difference * difference);
    return position_++ == nan_at_ ? loss * NAN : loss;
  }
  std::int64_t samples_per_micro_batch() const override { return 8; }
  std::string sample_name() const override { return "points"; }
  std::vector<std::pair<std::string, double>> evaluate() override {
    EXPECT_FALSE(layer_.is_training());
    return {{"val_loss", std::abs(layer_.weight.item<double>() - 2)}};
  }
  nlohmann::json data_state() const override { return position_; }
  void set_data_state(const nlohmann::json& state) override { position_ = state; }

  nn::Linear layer_;

 private:
  std::int64_t position_ = 0;
  std::int64_t nan_at_;
};

trainer::TrainerResult run(LineTask& task, trainer::TrainerOptions options) {
  optim::AdamW optimizer(task.model().named_parameters(), {.lr = 0.05, .weight_decay = 0});
  options.quiet = true;
  options.log_interval = 5;
  return trainer::train(
      task, optimizer, [](std::int64_t step) { return 0.05 / (1 + 0.01 * static_cast<double>(step)); },
      options);
}

TEST(Trainer, TrainsEvaluatesAndWritesItsFiles) {
  manual_seed(1);
  LineTask task;
  const std::string out = scratch("files");
  const trainer::TrainerResult result = run(task, {.output_dir = out,
                                                   .max_steps = 200,
                                                   .gradient_accumulation = 2,
                                                   .eval_interval = 50,
                                                   .checkpoint_interval = 40,
                                                   .keep_checkpoints = 2});
  EXPECT_EQ(result.steps, 200);
  EXPECT_FALSE(result.interrupted);
  EXPECT_LT(result.evaluation.at(0).second, 0.1);
  std::vector<std::string> checkpoints;
  for (const auto& entry : std::filesystem::directory_iterator(out + "/checkpoints"))
    checkpoints.push_back(entry.path().filename());
  std::sort(checkpoints.begin(), checkpoints.end());
  EXPECT_EQ(checkpoints, (std::vector<std::string>{"step-00000160", "step-00000200"}));
  EXPECT_NE(read(result.plot).find("<polyline"), std::string::npos);
  const std::string metrics = read(out + "/metrics.jsonl");
  EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 200 / 5 + 200 / 50);
  EXPECT_NE(metrics.find("points_per_second"), std::string::npos);
}

TEST(Trainer, PrecisionIsThatOfLossesAndNumericsAreWritten) {
  const auto losses = [](DType precision, const std::string& out) {
    manual_seed(1);
    LineTask task;
    run(task, {.output_dir = out,
               .max_steps = 10,
               .eval_interval = 0,
               .checkpoint_interval = 0,
               .precision = precision,
               .numerics_interval = 4});
    std::vector<double> values;
    std::vector<std::int64_t> reported;
    std::ifstream lines(out + "/metrics.jsonl");
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json entry = nlohmann::json::parse(line);
      if (entry.contains("loss")) values.push_back(entry["loss"]);
      if (!entry.contains("numerics")) continue;
      reported.push_back(entry["step"]);
      EXPECT_EQ(entry["numerics"]["dtype"], precision == DType::bf16 ? "bf16" : "f16");
      EXPECT_GT(entry["numerics"]["modules"][""]["gradient"]["amax"], 0);
    }
    EXPECT_EQ(reported, (std::vector<std::int64_t>{4, 8}));
    return values;
  };
  const std::vector<double> exact = losses(DType::f32, scratch("f32")),
                            low = losses(DType::bf16, scratch("bf16"));
  ASSERT_EQ(low.size(), exact.size());
  for (std::size_t i = 0; i < low.size(); ++i) {
    EXPECT_NE(low[i], exact[i]);
    // Predictions below 4 are off by some 2^-8 of that, their squares, of differences below 2, by four times
    // it.
    EXPECT_NEAR(low[i], exact[i], 16 * 0x1p-8);
  }
}

TEST(Trainer, ResumedRunEndsWithTheSameBits) {
  const auto train_to = [](LineTask& task, const std::string& out, std::int64_t steps, bool resume) {
    return run(task, {.output_dir = out,
                      .max_steps = steps,
                      .gradient_accumulation = 2,
                      .checkpoint_interval = 0,
                      .resume = resume});
  };
  manual_seed(1);
  LineTask whole;
  train_to(whole, scratch("whole"), 30, false);
  const std::string out = scratch("cut");
  manual_seed(1);
  LineTask first;
  train_to(first, out, 13, false);
  manual_seed(99);  // overwritten by the checkpoint's generator
  LineTask second;
  train_to(second, out, 30, true);
  EXPECT_TRUE(equal_bits(whole.layer_.weight, second.layer_.weight));
}

TEST(Trainer, ErrorsNameStepCheckpointAndSetting) {
  manual_seed(1);
  const std::string out = scratch("errors");
  LineTask task(12);
  const std::string nan =
      test::error_of([&] { run(task, {.output_dir = out, .max_steps = 20, .checkpoint_interval = 10}); });
  EXPECT_EQ(nan, "loss is nan at step 13: expected a finite number; the newest checkpoint is " + out
                     + "/checkpoints/step-00000010");
  EXPECT_TRUE(std::filesystem::exists(out + "/checkpoints/step-00000010/manifest.json"));
  LineTask again;
  EXPECT_NE(test::error_of([&] { run(again, {.output_dir = out}); }).find("holds a checkpoint already"),
            std::string::npos);
  EXPECT_NE(test::error_of([&] {
              run(again, {.output_dir = out, .resume = true, .run_config = {{"width", 3}}});
            }).find("width was null there, is 3 now"),
            std::string::npos);
  EXPECT_EQ(test::error_of([&] {
              run(again, {.output_dir = "/proc/none"});
            }).find("cannot make the output folder /proc/none"),
            0u);
  EXPECT_EQ(test::error_of([&] { run(again, {.output_dir = scratch("x"), .gradient_accumulation = 0}); }),
            "[trainer] gradient_accumulation is 0: expected 1 or more");
}

TEST(MetricsLog, ResumingDropsLaterAndCutLines) {
  const std::string path = testing::TempDir() + "/metrics_log.jsonl";
  std::ofstream(path) << "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":2}\n{\"step\":3,\"lo";
  {
    trainer::MetricsLog log(path, 2);
    EXPECT_EQ(log.entries().size(), 2u);
    log.write({{"step", 3}, {"loss", 1}});
  }
  EXPECT_EQ(read(path), "{\"loss\":3,\"step\":1}\n{\"loss\":2,\"step\":2}\n{\"loss\":1,\"step\":3}\n");
  trainer::MetricsLog fresh(path, -1);
  EXPECT_EQ(read(path), "");
}

TEST(LossPlot, HoldsEveryCurveAndSurvivesOddValues) {
  trainer::Curve curve{"a < b", "#123456", {}};
  for (int i = 0; i < 5000; ++i) curve.points.emplace_back(i, i == 7 ? NAN : 5.0 / (1 + i));
  const std::string svg = trainer::plot_svg(
      "Title & more", "loss", {curve, {"empty", "#000000", {}}, {"one", "#111111", {{3, 2.0}}}});
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  EXPECT_NE(svg.find("Title &amp; more"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_LT(svg.size(), 40000u);  // 5000 points are thinned
  EXPECT_NE(trainer::plot_svg("t", "y", {}).find("</svg>"), std::string::npos);
}

}  // namespace
}  // namespace ergon
