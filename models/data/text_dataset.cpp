#include "models/data/text_dataset.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "models/io/atomic_file.h"
#include "models/io/checksum.h"
#include "models/io/mapped_file.h"
#include "models/io/safetensors.h"

namespace ergon::data {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kMaxByteVocab = 256;  // vocabularies up to here are stored as u8
constexpr const char* kTensorName = "tokens";

// Is `path` hidden, or in a hidden folder, below `root`?
bool is_hidden(const fs::path& path, const fs::path& root) {
  for (const fs::path& part : path.lexically_relative(root)) {
    if (part.native().starts_with('.')) return true;
  }
  return false;
}

// The text files that `source` stands for; at least one has content.
std::vector<fs::path> find_files(const fs::path& source) {
  std::error_code error;
  if (!fs::is_directory(source, error)) {
    ERGON_CHECK(!io::MappedFile(source).bytes().empty(), "[text] '{}' is empty: expected text",
                source.string());
    return {source};
  }
  std::vector<fs::path> files;
  std::size_t found = 0;
  for (const fs::path& path : io::list_folder(source, /*recursive=*/true)) {
    if (is_hidden(path, source) || !fs::is_regular_file(path, error)) continue;
    ++found;
    if (fs::file_size(path, error) > 0 && !error) files.push_back(path);
  }
  ERGON_CHECK(found > 0, "[text] folder '{}' holds no files: expected text", source.string());
  ERGON_CHECK(!files.empty(), "[text] the {} file{} in folder '{}' {} empty: expected text", found,
              found == 1 ? "" : "s", source.string(), found == 1 ? "is" : "are");
  return files;
}

// Changes when a file is added, removed, renamed or written to.
std::string fingerprint_of(const fs::path& source, const std::vector<fs::path>& files) {
  io::Checksum sum;
  for (const fs::path& file : files) {
    std::error_code error;
    const auto size = fs::file_size(file, error);
    const auto written = error ? fs::file_time_type() : fs::last_write_time(file, error);
    ERGON_CHECK(!error, "[text] cannot read '{}': {}", file.string(), error.message());
    const std::string line = fmt::format("{}\n{} {}\n", file.lexically_relative(source).string(), size,
                                         written.time_since_epoch().count());
    sum.update(line.data(), line.size());
  }
  return io::to_hex(sum.value());
}

// The next piece of text to encode: at least kPiece bytes, up to a place where a line begins with something
// other than white space, which tokenizers do not join with what is before it.
std::size_t piece_length(std::string_view text) {
  constexpr std::size_t kPiece = std::size_t{4} << 20;
  for (std::size_t end = text.find('\n', kPiece); end < text.size() - 1; end = text.find('\n', end + 1)) {
    if (text.find_first_of(" \t\r\n\f\v", end + 1) != end + 1) return end + 1;
  }
  return text.size();
}

// Calls sink(tokens) for the tokens of all files, in order.
void encode_files(const std::vector<fs::path>& files, const Tokenizer& tokenizer,
                  const std::function<void(std::vector<std::int32_t>)>& sink) {
  for (const fs::path& path : files) {
    const io::MappedFile file(path);
    for (std::string_view text = file.text(); !text.empty();) {
      const std::size_t length = piece_length(text);
      sink(tokenizer.encode(text.substr(0, length)));
      text.remove_prefix(length);
    }
    if (const auto token = tokenizer.end_of_text()) sink({*token});
  }
}

// Collects tokens and gives them away in shards.
class ShardMaker {
 public:
  // emit(tokens, is_last)
  ShardMaker(const Tokenizer& tokenizer, std::int64_t shard_tokens,
             std::function<void(const Tensor&, bool)> emit)
      : vocab_size_(tokenizer.vocab_size()),
        name_(tokenizer.name()),
        shard_tokens_(static_cast<std::size_t>(shard_tokens)),
        emit_(std::move(emit)) {}

  void add(const std::vector<std::int32_t>& tokens) {
    for (const std::int32_t token : tokens) {
      ERGON_CHECK(token >= 0 && token < vocab_size_, "[text] tokenizer '{}' gave token {}, expected [0, {})",
                  name_, token, vocab_size_);
      if (buffer_.size() == shard_tokens_) flush(false);
      buffer_.push_back(token);
    }
  }
  void finish() { flush(true); }

 private:
  void flush(bool is_last) {
    const auto size = static_cast<std::int64_t>(buffer_.size());
    const bool bytes = vocab_size_ <= static_cast<std::int64_t>(kMaxByteVocab);
    const Tensor tokens = empty({size}, {.dtype = bytes ? DType::u8 : DType::i32});
    if (bytes) {
      std::transform(buffer_.begin(), buffer_.end(), tokens.data<std::uint8_t>(),
                     [](std::int32_t token) { return static_cast<std::uint8_t>(token); });
    } else {
      std::copy(buffer_.begin(), buffer_.end(), tokens.data<std::int32_t>());
    }
    emit_(tokens, is_last);
    buffer_.clear();
  }

  std::int64_t vocab_size_;
  std::string name_;
  std::size_t shard_tokens_;
  std::function<void(const Tensor&, bool)> emit_;
  std::vector<std::int32_t> buffer_;
};

// Shards in a folder: PREFIX-00000.safetensors, ... Each says which source and tokenizer it was made from, so
// that a set that is incomplete, or of mixed origin after an interruption, is made again.
class ShardCache {
 public:
  ShardCache(const fs::path& source, std::string fingerprint, const Tokenizer& tokenizer,
             const TextOptions& options)
      : folder_(options.cache_folder) {
    const std::string identity = fmt::format("{}\n{}", fs::absolute(source).string(), tokenizer.name());
    const std::string hash = io::to_hex(io::checksum(identity.data(), identity.size()));
    const fs::path name = source.has_filename() ? source.filename() : source.parent_path().filename();
    prefix_ = fmt::format("{}-{}-", name.string().substr(0, 64), hash);
    metadata_ = {{"format", "ergon tokens 1"},
                 {"tokenizer", tokenizer.name()},
                 {"vocab_size", std::to_string(tokenizer.vocab_size())},
                 {"shard_tokens", std::to_string(options.shard_tokens)},
                 {"source", std::move(fingerprint)}};
  }

  // The shards, if all are there and fit.
  std::optional<std::vector<Tensor>> open() const {
    std::vector<Tensor> shards;
    try {
      while (true) {
        const fs::path path = shard_path(shards.size());
        std::error_code ignored;
        if (!fs::exists(path, ignored)) return std::nullopt;
        const io::SafetensorsFile file(path);
        const bool is_last = file.metadata() == metadata_for(shards.size(), true);
        if (!is_last && file.metadata() != metadata_for(shards.size(), false)) return std::nullopt;
        shards.push_back(file.tensor(kTensorName));
        if (is_last) return shards;
      }
    } catch (const Error& error) {
      log().warn("{}; the tokens are made again", error.what());
      return std::nullopt;
    }
  }

  void write(const Tensor& tokens, bool is_last) {
    if (written_ == 0) {
      io::create_folders(folder_);
      io::remove_leftovers(folder_, prefix_,
                           std::chrono::hours(1));  // younger ones may be of another process
    }
    io::write_safetensors(shard_path(written_), {{kTensorName, tokens}}, metadata_for(written_, is_last));
    ++written_;
  }

  // Shards of an earlier, larger set.
  void remove_surplus() const {
    std::error_code error;
    for (std::size_t i = written_; fs::remove(shard_path(i), error); ++i) {
    }
  }

 private:
  fs::path shard_path(std::size_t index) const {
    return folder_ / fmt::format("{}{:05}.safetensors", prefix_, index);
  }
  io::Metadata metadata_for(std::size_t index, bool is_last) const {
    io::Metadata metadata = metadata_;
    metadata["shard"] = std::to_string(index);
    metadata["last"] = is_last ? "true" : "false";
    return metadata;
  }

  fs::path folder_;
  std::string prefix_;
  io::Metadata metadata_;
  std::size_t written_ = 0;
};

std::vector<Tensor> encode_in_memory(const std::vector<fs::path>& files, const Tokenizer& tokenizer,
                                     std::int64_t shard_tokens) {
  std::vector<Tensor> shards;
  ShardMaker maker(tokenizer, shard_tokens, [&](const Tensor& tokens, bool) { shards.push_back(tokens); });
  encode_files(files, tokenizer, [&](const std::vector<std::int32_t>& tokens) { maker.add(tokens); });
  maker.finish();
  return shards;
}

// Shards made from folder A must not become part of A.
void check_cache_is_outside(const fs::path& source, const fs::path& cache_folder) {
  std::error_code error;
  if (!fs::is_directory(source, error)) return;
  const fs::path relative =
      fs::weakly_canonical(cache_folder, error).lexically_relative(fs::weakly_canonical(source, error));
  ERGON_CHECK(relative.empty() || *relative.begin() == "..",
              "[text] cache folder '{}' lies in the text folder '{}': choose another", cache_folder.string(),
              source.string());
}

std::vector<Tensor> open_shards(const fs::path& source, const Tokenizer& tokenizer,
                                const TextOptions& options) {
  const std::vector<fs::path> files = find_files(source);
  if (options.cache_folder.empty()) return encode_in_memory(files, tokenizer, options.shard_tokens);
  check_cache_is_outside(source, options.cache_folder);
  ShardCache cache(source, fingerprint_of(source, files), tokenizer, options);
  if (auto shards = cache.open()) return *shards;
  ShardMaker maker(tokenizer, options.shard_tokens,
                   [&](const Tensor& tokens, bool is_last) { cache.write(tokens, is_last); });
  encode_files(files, tokenizer, [&](const std::vector<std::int32_t>& tokens) { maker.add(tokens); });
  maker.finish();
  cache.remove_surplus();
  auto shards = cache.open();
  ERGON_CHECK(shards, "[text] the tokens of '{}' in '{}' were changed by another program", source.string(),
              options.cache_folder.string());
  return *shards;
}

}  // namespace

TextDataset load_text(const fs::path& source, const Tokenizer& tokenizer, const TextOptions& options) {
  const double fraction = options.validation_fraction;
  ERGON_CHECK(fraction >= 0 && fraction < 1, "[text] validation_fraction {}: expected [0, 1)", fraction);
  ERGON_CHECK(options.shard_tokens > 0, "[text] shard_tokens {} must be positive", options.shard_tokens);
  const TokenStream all(open_shards(source, tokenizer, options), tokenizer.vocab_size(), source.string());
  const auto split = static_cast<std::int64_t>(static_cast<double>(all.size()) * (1 - fraction));
  TextDataset dataset;
  dataset.train = all.slice(0, split, source.string() + " (training part)");
  dataset.validation = all.slice(split, all.size(), source.string() + " (validation part)");
  dataset.tokenizer = tokenizer.name();
  dataset.vocab_size = tokenizer.vocab_size();
  return dataset;
}

void TextDataset::check_vocabulary(std::int64_t model_vocab_size) const {
  ERGON_CHECK(vocab_size <= model_vocab_size,
              "[text] tokenizer '{}' has a vocabulary of {}, the model one of {}: the model's must not be "
              "smaller",
              tokenizer, vocab_size, model_vocab_size);
}

}  // namespace ergon::data
