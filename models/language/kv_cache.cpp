#include "models/language/kv_cache.h"

#include <algorithm>

#include "core/autograd.h"
#include "core/error.h"

namespace ergon::models {

KvCache::KvCache(std::int64_t capacity, std::int64_t page_size) : capacity_(capacity), page_size_(page_size) {
  ERGON_CHECK(capacity > 0, "[kv_cache] capacity {}: expected at least 1", capacity);
  ERGON_CHECK(page_size >= 0, "[kv_cache] page_size {}: expected 0 (no pages) or more", page_size);
}

std::int64_t KvCache::extend(std::int64_t batch, std::int64_t seqlen, Device device) {
  ERGON_CHECK(!grad_enabled(), "[kv_cache] gradients do not flow through a cache: use NoGradGuard");
  ERGON_CHECK(length_ == 0 || batch == batch_, "[kv_cache] batch {}: expected {}, as in the tokens before",
              batch, batch_);
  ERGON_CHECK(length_ + seqlen <= capacity_, "[kv_cache] {} tokens after {}: expected at most {} in all",
              seqlen, length_, capacity_);
  batch_ = batch;
  start_ = length_;
  length_ += seqlen;
  seqlens_k_ = full({batch}, static_cast<double>(length_), {DType::i32, device});
  if (page_size_ > 0) {
    pages_.resize(static_cast<std::size_t>(batch * pages_of_item()), 0);
    for (std::int64_t page = (start_ + page_size_ - 1) / page_size_; page * page_size_ < length_; ++page) {
      for (std::int64_t b = 0; b < batch; ++b)
        pages_[static_cast<std::size_t>(b * pages_of_item() + page)] = next_page_++;
    }
    block_table_ = from_vector(pages_, {batch, pages_of_item()}, {DType::i32, device});
  }
  return start_;
}

KvCache::Layer& KvCache::layer(std::int64_t index) {
  while (std::ssize(layers_) <= index) layers_.emplace_back(*this);
  return layers_[static_cast<std::size_t>(index)];
}

ops::AttentionCache KvCache::Layer::append(const Tensor& k, const Tensor& v) {
  const bool paged = cache_.page_size_ > 0;
  if (!k_.defined()) {
    const Shape shape =
        paged ? Shape{k.size(0) * cache_.pages_of_item(), cache_.page_size_, k.size(2), k.size(3)}
              : Shape{k.size(0), cache_.capacity_, k.size(2), k.size(3)};
    k_ = empty(shape, k.options());
    v_ = empty(shape, v.options());
  }
  const std::int64_t start = cache_.start_, end = cache_.length_, page_size = cache_.page_size_;
  if (!paged) {
    k_.slice(1, start, end).copy_(k);
    v_.slice(1, start, end).copy_(v);
    return {k_, v_, cache_.seqlens_k_};
  }
  for (std::int64_t b = 0; b < k.size(0); ++b) {
    for (std::int64_t from = start, to; from < end; from = to) {
      to = std::min((from / page_size + 1) * page_size, end);
      const std::int64_t
          page = cache_.pages_[static_cast<std::size_t>(b * cache_.pages_of_item() + from / page_size)],
          row = from % page_size;
      k_[page].slice(0, row, row + to - from).copy_(k[b].slice(0, from - start, to - start));
      v_[page].slice(0, row, row + to - from).copy_(v[b].slice(0, from - start, to - start));
    }
  }
  return {k_, v_, cache_.seqlens_k_, cache_.block_table_};
}

std::int64_t first_position(const char* model, const Tensor& tokens, std::int64_t context_length,
                            KvCache* cache) {
  ERGON_CHECK(tokens.dim() == 2, "[{}] tokens of shape {}: expected (batch, seqlen)", model, tokens.shape());
  const std::int64_t seqlen = tokens.size(1), read = cache == nullptr ? 0 : cache->length();
  ERGON_CHECK(read + seqlen <= context_length, "[{}] {} tokens are more than the context length {}", model,
              read + seqlen, context_length);
  return cache == nullptr ? 0 : cache->extend(tokens.size(0), seqlen, tokens.device());
}

Tensor attend_causally(const Tensor& q, const Tensor& k, const Tensor& v, KvCache::Layer* cache) {
  if (cache == nullptr) return ops::scaled_dot_product_attention(q, k, v, {.causal = true});
  return ops::scaled_dot_product_attention_with_cache(q, cache->append(k, v), {.causal = true});
}

}  // namespace ergon::models
