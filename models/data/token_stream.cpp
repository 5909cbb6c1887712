#include "models/data/token_stream.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace ergon::data {

TokenStream::TokenStream(std::vector<Tensor> shards, std::int64_t vocab_size, std::string name)
    : vocab_size_(vocab_size), name_(std::move(name)) {
  std::vector<Shard> list;
  for (Tensor& tokens : shards) {
    const bool fits = tokens.dim() == 1 && tokens.is_contiguous() && tokens.device().is_cpu()
                      && (tokens.dtype() == DType::u8 || tokens.dtype() == DType::i32);
    ERGON_CHECK(fits, "[tokens] {}: a shard is {} of {}, expected (tokens) of u8 or i32", name_,
                tokens.shape(), ergon::name_of(tokens.dtype()));
    const std::int64_t count = tokens.numel();
    if (count > 0) list.push_back({std::move(tokens), end_});
    end_ += count;
  }
  shards_ = std::make_shared<const std::vector<Shard>>(std::move(list));
}

TokenStream TokenStream::slice(std::int64_t begin, std::int64_t end, std::string name) const {
  ERGON_CHECK(0 <= begin && begin <= end && end <= size(), "[tokens] {}: slice [{}, {}) of {} tokens", name_,
              begin, end, size());
  TokenStream part = *this;
  part.begin_ = begin_ + begin;
  part.end_ = begin_ + end;
  part.name_ = std::move(name);
  return part;
}

void TokenStream::read(std::int64_t begin, std::int64_t count, std::int32_t* out) const {
  ERGON_CHECK(begin >= 0 && count >= 0 && count <= size() && begin <= size() - count,
              "[tokens] {}: tokens [{}, {}) of {}", name_, begin, begin + count, size());
  if (count == 0) return;
  std::int64_t position = begin_ + begin;
  std::int32_t* next = out;
  const auto after = [](std::int64_t value, const Shard& shard) { return value < shard.first; };
  auto shard = std::upper_bound(shards_->begin(), shards_->end(), position, after) - 1;
  for (std::int64_t left = count; left > 0; ++shard) {
    const std::int64_t offset = position - shard->first;
    const std::int64_t piece = std::min(left, shard->tokens.numel() - offset);
    if (shard->tokens.dtype() == DType::u8) {
      next = std::copy_n(shard->tokens.data<std::uint8_t>() + offset, piece, next);
    } else {
      next = std::copy_n(shard->tokens.data<std::int32_t>() + offset, piece, next);
    }
    position += piece;
    left -= piece;
  }
  const std::int64_t limit = vocab_size_;
  const std::int32_t* bad =
      std::find_if(out, out + count, [=](std::int32_t token) { return token < 0 || token >= limit; });
  ERGON_CHECK(bad == out + count, "[tokens] {}: token {} at {}, expected [0, {})", name_, *bad,
              begin + (bad - out), vocab_size_);
}

}  // namespace ergon::data
