#pragma once

// The training loop: steps, evaluation, metrics, checkpoints, resuming, interruption.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "models/nn/module.h"
#include "models/trainer/auto_precision.h"
#include "optim/optimizer.h"

namespace ergon::trainer {

// What is trained on what. The trainer asks it for losses; everything random in it must be a function of the
// default generator and of what data_state() returns, or resuming is not exact.
class Task {
 public:
  virtual ~Task() = default;

  virtual nn::Module& model() = 0;
  // Hugging Face's config.json, stored with every checkpoint.
  virtual nlohmann::json model_config() const = 0;
  // The mean loss of the next micro-batch, recorded for backward.
  virtual Tensor next_loss() = 0;
  // Samples of one micro-batch, in `sample_name()`s ("tokens", "images").
  virtual std::int64_t samples_per_micro_batch() const = 0;
  virtual std::string sample_name() const = 0;
  // Metrics on held-out data, the first one the loss: {{"val_loss", 1.9}, {"val_accuracy", 0.8}}. Called
  // without gradients and in evaluation mode.
  virtual std::vector<std::pair<std::string, double>> evaluate() = 0;
  // Where the data loader stands.
  virtual nlohmann::json data_state() const = 0;
  virtual void set_data_state(const nlohmann::json& state) = 0;
};

struct TrainerOptions {
  std::string output_dir;  // checkpoints/, metrics.jsonl and loss.svg go here
  std::int64_t max_steps = 1000;
  std::int64_t gradient_accumulation = 1;  // micro-batches a step
  double clip_norm = 1.0;                  // of the gradient's 2-norm; 0: no clipping
  std::int64_t log_interval = 10;          // steps between progress lines
  std::int64_t eval_interval = 250;        // steps between evaluations; 0: only at the end
  std::int64_t checkpoint_interval = 500;  // steps between checkpoints; 0: only at the end
  std::int64_t keep_checkpoints = 3;       // the newest ones kept
  bool resume = false;                     // go on from the newest checkpoint in output_dir, if there is one
  bool quiet = false;                      // no progress lines on standard output
  DType precision = DType::f32;            // of an Autocast scope around losses and evaluations; f16: the
                                           // loss is scaled (optim/grad_scaler.h)
  // The run changes its precision where need be; `precision`, f16 or bf16, is where it starts.
  std::optional<AutoPrecisionOptions> auto_precision = std::nullopt;
  std::int64_t numerics_interval = 0;  // steps between numerics reports; 0: none
  nlohmann::json run_config = {};      // stored in checkpoints; must be the same when resuming
};

struct TrainerResult {
  std::int64_t steps = 0;                                  // made in total, those before a resume included
  bool interrupted = false;                                // by Ctrl-C or SIGTERM, after a checkpoint
  double train_loss = 0;                                   // of the last step
  std::int64_t skipped_steps = 0;                          // for inf or NaN in fp16 gradients
  std::vector<std::pair<std::string, double>> evaluation;  // the last one
  double samples_per_second = 0;                           // median over the logged intervals of this process
  std::string checkpoint;                                  // the newest checkpoint's folder
  std::string plot;                                        // loss.svg
};

// Makes the folder, if need be. Throws Error naming it if it cannot be made or written to.
void make_output_folder(const std::string& path);

// Trains `task` with `optimizer`; `learning_rate(step)` is set before each step (0, 1, ...).
// Throws Error when the output folder cannot be written, when output_dir holds checkpoints and resume is off,
// when a checkpoint does not fit, and when a loss or gradient norm is not finite (naming the step and the
// newest checkpoint, which stays as it was). In fp16 that is a skipped step; the error comes when the loss
// scale falls below 2^-14 or 40 steps in a row are skipped.
TrainerResult train(Task& task, optim::Optimizer& optimizer,
                    const std::function<double(std::int64_t)>& learning_rate, const TrainerOptions& options);

}  // namespace ergon::trainer
