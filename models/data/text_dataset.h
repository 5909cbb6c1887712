#pragma once

// Text files as tokens, ready for training.

#include <cstdint>
#include <filesystem>
#include <string>

#include "models/data/token_stream.h"
#include "models/data/tokenizer.h"

namespace ergon::data {

struct TextOptions {
  // Where the tokens are kept between runs, in memory-mapped shards; they are made again when a source file
  // or the tokenizer has changed. Empty: the tokens are kept in memory.
  std::filesystem::path cache_folder = {};
  // The last part of the text, in [0, 1), is for validation; the part before it for training.
  double validation_fraction = 0.1;
  std::int64_t shard_tokens = std::int64_t{1} << 25;
};

struct TextDataset {
  TokenStream train;
  TokenStream validation;
  std::string tokenizer;
  std::int64_t vocab_size = 0;

  // Throws Error unless a model of this vocabulary can read every token.
  void check_vocabulary(std::int64_t model_vocab_size) const;
};

// `source` is a text file, or a folder, of which every file is read, those in sub-folders too, in order of
// their paths; hidden ones are passed over. Throws Error, naming the path, for a source that is missing,
// unreadable, or without text.
TextDataset load_text(const std::filesystem::path& source, const Tokenizer& tokenizer,
                      const TextOptions& options = {});

}  // namespace ergon::data
