#pragma once

// Keys and values of the tokens that a language model has read, for each of its layers: to read one more
// token costs the work of one.
//
//   NoGradGuard no_grad;
//   KvCache cache(model.context_length());
//   model.next_token_logits(prompt, &cache);      // (batch, seqlen)
//   model.next_token_logits(next_token, &cache);  // (batch, 1)

#include <cstdint>
#include <vector>

#include "ops/attention.h"

namespace ergon::models {

class KvCache {
 public:
  class Layer;

  // `capacity` tokens of each item; its memory is taken when the first tokens are read. With a page_size the
  // keys and values lie in pages of so many tokens, given out as an item grows; without, side by side.
  explicit KvCache(std::int64_t capacity, std::int64_t page_size = 0);
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // Tokens that have been read.
  std::int64_t length() const { return length_; }

  // To be called by a model before its layers append: `seqlen` more tokens of each of `batch` items. Returns
  // the position of the first. Throws Error if they do not fit, for another batch than before, or while
  // gradients are recorded.
  std::int64_t extend(std::int64_t batch, std::int64_t seqlen, Device device);
  Layer& layer(std::int64_t index);

 private:
  std::int64_t pages_of_item() const { return (capacity_ + page_size_ - 1) / page_size_; }

  std::int64_t capacity_, page_size_;
  std::int64_t batch_ = 0, start_ = 0, length_ = 0;
  std::vector<std::int32_t> pages_;  // (batch, pages of an item), what block_table_ holds
  std::int32_t next_page_ = 0;
  Tensor seqlens_k_, block_table_;
  std::vector<Layer> layers_;
};

class KvCache::Layer {
 public:
  explicit Layer(const KvCache& cache) : cache_(cache) {}

  // Stores k and v (batch, seqlen, num_heads_kv, head_dim) of the newest tokens; returns what attention
  // reads.
  ops::AttentionCache append(const Tensor& k, const Tensor& v);

 private:
  const KvCache& cache_;
  Tensor k_, v_;
};

// The position of the first of `tokens`: 0, or the one after what the cache holds, which is extended. Throws
// Error, naming the model, unless tokens is (batch, seqlen) and ends within context_length.
std::int64_t first_position(const char* model, const Tensor& tokens, std::int64_t context_length,
                            KvCache* cache);

// Causal attention of q to k and v, and to what the cache holds (null: nothing), to which they are appended.
Tensor attend_causally(const Tensor& q, const Tensor& k, const Tensor& v, KvCache::Layer* cache);

}  // namespace ergon::models
