#pragma once

// A long sequence of tokens in consecutive shards.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace ergon::data {

// A cheap handle: copies and slices share the shards.
class TokenStream {
 public:
  TokenStream() = default;
  // Each shard: (tokens) u8 or i32, contiguous, on the CPU. `name` is used in errors.
  TokenStream(std::vector<Tensor> shards, std::int64_t vocab_size, std::string name);

  std::int64_t size() const { return end_ - begin_; }
  std::int64_t vocab_size() const { return vocab_size_; }
  const std::string& name() const { return name_; }

  // Tokens [begin, end).
  TokenStream slice(std::int64_t begin, std::int64_t end, std::string name) const;
  // Copies tokens [begin, begin + count). Throws Error for a range that is not inside, and for a token that
  // is not in [0, vocab_size()).
  void read(std::int64_t begin, std::int64_t count, std::int32_t* out) const;

 private:
  struct Shard {
    Tensor tokens;
    std::int64_t first = 0;  // place of its first token in the whole
  };
  std::shared_ptr<const std::vector<Shard>> shards_;
  std::int64_t begin_ = 0;
  std::int64_t end_ = 0;
  std::int64_t vocab_size_ = 0;
  std::string name_;
};

}  // namespace ergon::data
