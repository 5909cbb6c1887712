// Runs of the trainer in half precision: loss scaling, and --precision auto.

#include <cmath>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "models/nn/layers.h"
#include "models/trainer/trainer.h"
#include "ops/arithmetic.h"
#include "ops/reduce.h"
#include "optim/adamw.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

using nlohmann::json;
using trainer::AutoPrecision;
using trainer::ModuleNumerics;

std::string scratch(const std::string& name) {
  const std::string path = testing::TempDir() + "/auto_precision_" + name;
  std::filesystem::remove_all(path);
  return path;
}

std::vector<json> metrics_of(const std::string& folder) {
  std::vector<json> entries;
  std::ifstream in(folder + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) entries.push_back(json::parse(line));
  return entries;
}

// y = down(up(x)), without biases.
struct TwoLayers : nn::Layer {
  TwoLayers() : up(4, 8, {.bias = false}), down(8, 4, {.bias = false}) {
    register_module("up", up);
    register_module("down", down);
  }
  Tensor forward(const Tensor& x) override { return down(up(x)); }
  nn::Linear up, down;
};

struct TaskOptions {
  double up_weight = 0;    // all weights of `up`; 0: as they are initialised
  double input_scale = 1;  // of x, whose target is a quarter of it
  double loss_scale = 1;
  std::int64_t nan_from = 1000, nan_to = 1000;  // micro-batches whose loss is NaN
};

class TwoLayerTask : public trainer::Task {
 public:
  explicit TwoLayerTask(const TaskOptions& options) : options_(options) {
    NoGradGuard no_grad;
    if (options.up_weight == 0) return;
    model_.up.weight.fill_(options.up_weight);
    model_.down.weight.fill_(0.01 / options.up_weight);
  }
  nn::Module& model() override { return model_; }
  json model_config() const override { return {{"model_type", "two_layers"}}; }
  Tensor next_loss() override {
    Generator generator(static_cast<std::uint64_t>(position_) + 1);
    const Tensor x = (rand({16, 4}, {}, generator) + 0.5) * options_.input_scale;
    const Tensor difference = (model_(x) - x * 0.25) / options_.input_scale;
    const Tensor loss = ops::mean(difference * difference) * options_.loss_scale;
    const bool is_nan = position_ >= options_.nan_from && position_ < options_.nan_to;
    ++position_;
    return is_nan ? loss * NAN : loss;
  }
  std::int64_t samples_per_micro_batch() const override { return 16; }
  std::string sample_name() const override { return "points"; }
  std::vector<std::pair<std::string, double>> evaluate() override { return {{"val_loss", 0}}; }
  json data_state() const override { return position_; }
  void set_data_state(const json& state) override { position_ = state; }

  TwoLayers model_;

 private:
  TaskOptions options_;
  std::int64_t position_ = 0;
};

trainer::TrainerResult train(TwoLayerTask& task, trainer::TrainerOptions options,
                             optim::AdamWOptions adamw = {}) {
  adamw.weight_decay = 0;
  adamw.eps = 1e-16;
  optim::AdamW optimizer(task.model().named_parameters(), adamw);
  options.quiet = true;
  options.log_interval = 1;
  return trainer::train(
      task, optimizer, [](std::int64_t) { return 0.01; }, options);
}

// The lines of steps, without evaluations and decisions.
std::vector<json> steps_of(const std::string& folder) {
  std::vector<json> steps;
  for (const json& entry : metrics_of(folder)) {
    if (entry.contains("loss")) steps.push_back(entry);
  }
  return steps;
}

double first_loss(const std::string& folder) { return steps_of(folder).at(0).at("loss"); }

TEST(Fp16Training, SkipsStepsThatAreNotFiniteAndSaysSo) {
  manual_seed(1);
  TwoLayerTask task({.nan_from = 6, .nan_to = 8});
  const std::string out = scratch("skips");
  const trainer::TrainerResult result =
      train(task, {.output_dir = out, .max_steps = 60, .gradient_accumulation = 2, .precision = DType::f16});
  EXPECT_EQ(result.skipped_steps, 1);
  EXPECT_LT(result.train_loss, 0.5 * first_loss(out));
  const std::vector<json> metrics = steps_of(out);
  EXPECT_EQ(metrics[2].at("loss_scale"), 65536);
  EXPECT_TRUE(metrics[3].at("loss").is_null());
  EXPECT_EQ(metrics[3].at("loss_scale"), 32768);
  EXPECT_EQ(metrics[3].at("skipped_steps"), 1);
}

TEST(Fp16Training, EndsWithAClearErrorWhenNothingHelps) {
  manual_seed(1);
  TwoLayerTask task({.nan_from = 10});
  const std::string out = scratch("hopeless");
  EXPECT_EQ(
      test::error_of([&] {
        train(task, {.output_dir = out, .max_steps = 100, .checkpoint_interval = 5, .precision = DType::f16});
      }),
      "fp16 does not hold this run's numbers: 31 steps in a row were skipped up to step 41, the loss scale "
      "fell to 3.0517578125e-05; the newest checkpoint is "
          + out + "/checkpoints/step-00000040; bf16 has the range of fp32 (--precision bf16 or auto)");
}

TEST(Fp16Training, ResumedRunEndsWithTheSameBits) {
  const optim::AdamWOptions kRecipes[] = {{}, {.master_weights = true, .state_dtype = DType::bf16}};
  for (const optim::AdamWOptions& adamw : kRecipes) {
    const auto run = [&](const std::string& out, std::int64_t steps, bool resume) {
      manual_seed(resume ? 9 : 1);  // overwritten by the checkpoint's
      TwoLayerTask task({.nan_from = 5, .nan_to = 6});
      if (adamw.master_weights) task.model().to(DType::f16);
      train(task, {.output_dir = out, .max_steps = steps, .resume = resume, .precision = DType::f16}, adamw);
      return task.model().state_dict();
    };
    const NamedTensors whole = run(scratch("whole"), 20, false);
    const std::string out = scratch("cut");
    run(out, 8, false);
    const NamedTensors resumed = run(out, 20, true);
    for (std::size_t i = 0; i < whole.size(); ++i) {
      EXPECT_TRUE(equal_bits(whole[i].second, resumed[i].second)) << whole[i].first;
    }
    EXPECT_EQ(steps_of(out).back().at("loss_scale"), 32768);
  }
}

trainer::TrainerOptions auto_fp16(const std::string& out, std::int64_t steps) {
  return {.output_dir = out,
          .max_steps = steps,
          .precision = DType::f16,
          .auto_precision = trainer::AutoPrecisionOptions{.watch_interval = 4}};
}

std::vector<json> decisions_of(const std::string& folder) {
  std::vector<json> decisions;
  for (const json& entry : metrics_of(folder)) {
    if (entry.contains("precision_decision")) decisions.push_back(entry);
  }
  return decisions;
}

// The results of `up` are about 4 * 200 * 200 = 160000, above fp16's 65504.
TEST(AutoPrecisionTraining, RaisesTheLayersThatOverflow) {
  manual_seed(1);
  TwoLayerTask task({.up_weight = 200, .input_scale = 200});
  const std::string out = scratch("overflow");
  const trainer::TrainerResult result = train(task, auto_fp16(out, 80));
  const std::vector<json> decisions = decisions_of(out);
  ASSERT_EQ(decisions.size(), 2u);
  EXPECT_EQ(decisions[0].at("precision_decision"), "raise to fp32");
  EXPECT_EQ(decisions[0].at("module"), "up");
  EXPECT_EQ(decisions[0].at("reason"),
            "128 infinite and 0 NaN results in fp16, whose largest number is 65504");
  EXPECT_EQ(decisions[0].at("step"), 2);         // the first step was skipped, the second watched
  EXPECT_EQ(decisions[1].at("module"), "down");  // whose input is above fp16's range now
  EXPECT_EQ(task.model_.up.precision(), DType::f32);
  const json seen = metrics_of(out)[1];  // what the decision rests on
  EXPECT_EQ(seen.at("step"), 2);
  EXPECT_EQ(seen.at("numerics").at("modules").at("up").at("output").at("inf"), 128);
  EXPECT_TRUE(std::isfinite(result.train_loss));
  EXPECT_EQ(result.skipped_steps, 3);

  // A resumed run keeps the decisions.
  TwoLayerTask again({.up_weight = 200, .input_scale = 200});
  trainer::TrainerOptions options = auto_fp16(out, 84);
  options.resume = true;
  EXPECT_EQ(train(again, options).skipped_steps, 3);
  EXPECT_EQ(again.model_.up.precision(), DType::f32);
  EXPECT_EQ(decisions_of(out).size(), 2u);
}

// Gradients of about 1e-9 / 16 / 4, times the loss scale 65536, are below fp16's least normal number 6e-5.
TEST(AutoPrecisionTraining, LeavesFp16WhenGradientsUnderflow) {
  manual_seed(1);
  TwoLayerTask task({.loss_scale = 1e-9});
  const std::string out = scratch("underflow");
  const trainer::TrainerResult result = train(task, auto_fp16(out, 60));
  const std::vector<json> decisions = decisions_of(out);
  ASSERT_EQ(decisions.size(), 1u);
  EXPECT_EQ(decisions[0].at("precision_decision"), "switch to bf16");
  EXPECT_EQ(decisions[0].at("step"), 12);  // three looks, four steps apart
  EXPECT_NE(decisions[0].at("reason").get<std::string>().find("% of the gradients underflow fp16"),
            std::string::npos);
  EXPECT_LT(result.train_loss, 0.5 * first_loss(out));
  EXPECT_TRUE(steps_of(out)[10].contains("loss_scale"));
  EXPECT_FALSE(steps_of(out)[12].contains("loss_scale"));

  TwoLayerTask again({.loss_scale = 1e-9});
  trainer::TrainerOptions options = auto_fp16(out, 64);
  options.resume = true;
  train(again, options);
  EXPECT_FALSE(steps_of(out).back().contains("loss_scale"));  // in bf16 still
  EXPECT_EQ(decisions_of(out).size(), 1u);
}

TEST(AutoPrecisionTraining, AHealthyRunStaysInFp16) {
  manual_seed(1);
  TwoLayerTask task({});
  const std::string out = scratch("healthy");
  const trainer::TrainerResult result = train(task, auto_fp16(out, 60));
  EXPECT_EQ(decisions_of(out).size(), 0u);
  EXPECT_EQ(result.skipped_steps, 0);
  EXPECT_LT(result.train_loss, 0.5 * first_loss(out));
}

TEST(AutoPrecision, SkippedStepsWithFiniteActivationsEndFp16) {
  TwoLayers model;
  AutoPrecision precision(model, DType::f16, {.most_skips = 3});
  const std::vector<ModuleNumerics> numerics{{"", {.amax = 1}, {.infinite = 1}},
                                             {"up", {.amax = 1}, {.infinite = 1}}};
  for (std::int64_t step = 1; step <= 3; ++step) {
    EXPECT_EQ(precision.wants_numerics(step), step > 1);  // after a skipped step
    const optim::GradScalerState scaler{.scale = 8, .consecutive_skips = step};
    const auto decisions = precision.after_step(
        {.step = step, .loss = 1, .scaler = scaler, .numerics = step > 1 ? &numerics : nullptr});
    EXPECT_EQ(decisions.size(), step == 3 ? 1u : 0u);
    if (step == 3) {
      EXPECT_EQ(
          decisions[0].reason,
          "3 steps in a row were skipped, down to a loss scale of 8, though all activations are finite");
    }
  }
  EXPECT_EQ(precision.dtype(), DType::bf16);
}

TEST(AutoPrecision, LooksAtTheNumericsAfterASpike) {
  TwoLayers model;
  AutoPrecision precision(model, DType::bf16);
  for (std::int64_t step = 1; step <= 30; ++step) {
    EXPECT_TRUE(precision.after_step({.step = step, .loss = 2}).empty());
    EXPECT_FALSE(precision.wants_numerics(step + 1));
  }
  const auto decisions = precision.after_step({.step = 31, .loss = 4.5});
  ASSERT_EQ(decisions.size(), 1u);
  EXPECT_EQ(decisions[0].action, "look at the numerics");
  EXPECT_EQ(decisions[0].reason, "the loss is 4.5, its average was 2");
  EXPECT_TRUE(precision.wants_numerics(32));
}

TEST(AutoPrecision, InfinitiesOutsideOfEveryLayerEndFp16) {
  TwoLayers model;
  AutoPrecision precision(model, DType::f16);
  const std::vector<ModuleNumerics> numerics{{"", {.infinite = 3}, {}}, {"up", {.amax = 1}, {}}};
  const auto decisions = precision.after_step({.step = 1, .loss = INFINITY, .numerics = &numerics});
  ASSERT_EQ(decisions.size(), 1u);
  EXPECT_EQ(decisions[0].action, "switch to bf16");
}

TEST(AutoPrecision, ErrorsNameWhatIsWrong) {
  TwoLayers model;
  EXPECT_EQ(test::error_of([&] { AutoPrecision(model, DType::f32); }),
            "[AutoPrecision] starts in f32: expected f16 or bf16");
  json state = AutoPrecision(model, DType::f16).state();
  state["raised"] = {"middle"};
  EXPECT_EQ(test::error_of([&] { AutoPrecision(model, DType::f16).load_state(state); }),
            "[AutoPrecision] the model has no module named middle");
}

}  // namespace
}  // namespace ergon
