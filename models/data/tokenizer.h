#pragma once

// Text to tokens and back.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ergon::data {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Names the vocabulary: tokenizers of one name give one text the same tokens. Cached tokens are kept by it.
  virtual std::string name() const = 0;
  // Tokens are in [0, vocab_size()).
  virtual std::int64_t vocab_size() const = 0;
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  // Throws Error for a token out of range.
  virtual std::string decode(std::span<const std::int32_t> tokens) const = 0;
  // The token put after each document, if the vocabulary has one.
  virtual std::optional<std::int32_t> end_of_text() const { return std::nullopt; }
};

// Every byte is a token.
class ByteTokenizer final : public Tokenizer {
 public:
  std::string name() const override { return "byte"; }
  std::int64_t vocab_size() const override { return 256; }
  std::vector<std::int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const std::int32_t> tokens) const override;
};

}  // namespace ergon::data
