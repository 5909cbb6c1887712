#pragma once

// Batches for training: a source makes batch k, a loader hands them out in order, prepared ahead of time.
//
//   auto text = load_text("book.txt", ByteTokenizer(), {.cache_folder = "out/data"});
//   Loader loader(std::make_shared<SequenceSource>(text.train, SequenceOptions{.batch_size = 12, ...}));
//   Batch batch = loader.next();

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include <nlohmann/json.hpp>

#include "core/tensor.h"

namespace ergon::data {

struct Batch {
  Tensor inputs;   // text: (batch, seqlen) i32; images: (batch, channels, height, width) f32
  Tensor targets;  // text: (batch, seqlen) i32; images: (batch) i32

  // Both tensors: see Tensor's members of these names.
  Batch to(Device device, bool non_blocking = false) const;
  Batch pin_memory() const;
};

// Batch k is a pure function of the source's settings and k; all members may be called from any thread.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // Throws Error for k out of [0, num_batches()).
  virtual Batch batch(std::int64_t k) const = 0;
  // INT64_MAX where there is no end to them.
  virtual std::int64_t num_batches() const = 0;
  // Passes over the data that k batches make.
  virtual double epochs(std::int64_t k) const = 0;
  // A flat object: all that decides the batches.
  virtual nlohmann::json settings() const = 0;
};

// Batches in order, some made ahead by a thread of the loader's own; how many changes nothing in them. Use
// from one thread at a time.
class Loader {
 public:
  // prefetch: batches ready in advance, at most; 0: each is made when it is asked for. device: where next()
  // puts them; to a CUDA device they are copied from pinned memory, beside the computation.
  explicit Loader(std::shared_ptr<const BatchSource> source, int prefetch = 2, Device device = Device::cpu());
  ~Loader();  // waits for the batch in the making
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // Throws what the source threw for this batch, at every call until seek().
  Batch next();
  // Batches handed out: the number of the one that next() gives.
  std::int64_t position() const { return position_; }
  void seek(std::int64_t position);
  // Passes over the data so far.
  double epochs() const { return source_->epochs(position_); }

  // Position and the source's settings.
  nlohmann::json state() const;
  // Goes on where state() was taken. Throws Error that names the setting, its saved and its present value, if
  // the batches would not be the same.
  void set_state(const nlohmann::json& state);

 private:
  struct Item {
    Batch batch;
    std::exception_ptr error;  // instead of a batch
  };
  void start();
  void stop();
  void work(std::int64_t k);
  Batch make(std::int64_t k) const;  // in pinned memory, if it is to go to a CUDA device

  std::shared_ptr<const BatchSource> source_;
  std::size_t prefetch_;
  Device device_;
  std::int64_t position_ = 0;
  std::thread worker_;

  std::mutex mutex_;  // for what follows
  std::condition_variable changed_;
  std::deque<Item> ready_;
  bool stopping_ = false;
};

}  // namespace ergon::data
