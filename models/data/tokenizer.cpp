#include "models/data/tokenizer.h"

#include "core/error.h"

namespace ergon::data {

std::vector<std::int32_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> tokens(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) tokens[i] = static_cast<unsigned char>(text[i]);
  return tokens;
}

std::string ByteTokenizer::decode(std::span<const std::int32_t> tokens) const {
  std::string text(tokens.size(), '\0');
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    ERGON_CHECK(tokens[i] >= 0 && tokens[i] < 256, "[byte tokenizer] token {} at {}: expected [0, 256)",
                tokens[i], i);
    text[i] = static_cast<char>(tokens[i]);
  }
  return text;
}

}  // namespace ergon::data
