#pragma once

// Language modelling as the trainer's task.

#include "models/data/loader.h"
#include "models/data/text_dataset.h"
#include "models/language/causal_lm.h"
#include "models/trainer/trainer.h"

namespace ergon::models {

struct LanguageTaskOptions {
  std::int64_t batch = 12;
  std::int64_t seqlen = 64;
  std::int64_t eval_batches = 40;
  std::uint64_t seed = 1337;
};

class LanguageTask : public trainer::Task {
 public:
  // `model` must outlive the task and stay on its device, where batches go. Throws Error if the model's
  // vocabulary or context is too small for the text, or a part of the text is shorter than one sequence.
  LanguageTask(CausalLM& model, const data::TextDataset& text, const LanguageTaskOptions& options);

  nn::Module& model() override { return model_; }
  nlohmann::json model_config() const override { return model_.config(); }
  Tensor next_loss() override;
  std::int64_t samples_per_micro_batch() const override { return options_.batch * options_.seqlen; }
  std::string sample_name() const override { return "tokens"; }
  // val_loss and perplexity, over the same random windows each time.
  std::vector<std::pair<std::string, double>> evaluate() override;
  nlohmann::json data_state() const override { return training_.state(); }
  void set_data_state(const nlohmann::json& state) override { training_.set_state(state); }

 private:
  CausalLM& model_;
  LanguageTaskOptions options_;
  data::Loader training_;
  data::Loader validation_;
};

}  // namespace ergon::models
