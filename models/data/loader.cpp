#include "models/data/loader.h"

#include <system_error>
#include <utility>

#include "core/error.h"
#include "models/io/json.h"

namespace ergon::data {

using nlohmann::json;

Batch Batch::to(Device device, bool non_blocking) const {
  return {inputs.to(device, non_blocking), targets.to(device, non_blocking)};
}

Batch Batch::pin_memory() const { return {inputs.pin_memory(), targets.pin_memory()}; }

Loader::Loader(std::shared_ptr<const BatchSource> source, int prefetch, Device device)
    : source_(std::move(source)), prefetch_(static_cast<std::size_t>(prefetch)), device_(device) {
  check_available(device);
  ERGON_CHECK(source_ != nullptr, "[loader] no source");
  ERGON_CHECK(prefetch >= 0, "[loader] prefetch {} must not be negative", prefetch);
}

Loader::~Loader() { stop(); }

Batch Loader::next() {
  if (prefetch_ == 0) {
    const Batch batch = make(position_);
    ++position_;
    return batch.to(device_, true);
  }
  if (!worker_.joinable()) start();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ready_.empty(); });
  if (ready_.front().error) std::rethrow_exception(ready_.front().error);
  const Batch batch = std::move(ready_.front().batch);
  ready_.pop_front();
  ++position_;
  lock.unlock();
  changed_.notify_all();
  return batch.to(device_, true);
}

Batch Loader::make(std::int64_t k) const {
  const Batch batch = source_->batch(k);
  return device_.is_cuda() ? batch.pin_memory() : batch;
}

void Loader::seek(std::int64_t position) {
  ERGON_CHECK(position >= 0, "[loader] position {} must not be negative", position);
  stop();
  position_ = position;
}

void Loader::start() {
  try {
    worker_ = std::thread(&Loader::work, this, position_);
  } catch (const std::system_error& error) {
    ERGON_FAIL("[loader] cannot start a thread: {}", error.what());
  }
}

void Loader::stop() {
  if (!worker_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  worker_.join();
  ready_.clear();
  stopping_ = false;
}

void Loader::work(std::int64_t k) {
  while (true) {
    Item item;
    try {
      item.batch = make(k++);
    } catch (...) {
      item.error = std::current_exception();
    }
    const bool failed = item.error != nullptr;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return stopping_ || ready_.size() < prefetch_; });
    if (stopping_) return;
    ready_.push_back(std::move(item));
    lock.unlock();
    changed_.notify_all();
    if (failed) return;
  }
}

json Loader::state() const { return {{"position", position_}, {"settings", source_->settings()}}; }

void Loader::set_state(const json& state) {
  const auto member = [&](const char* key) -> const json& {
    ERGON_CHECK(state.is_object() && state.contains(key), "[loader] the saved state has no \"{}\"", key);
    return state[key];
  };
  const json& position = member("position");
  ERGON_CHECK(position.is_number_integer() && position.get<std::int64_t>() >= 0,
              "[loader] the saved position must be a non-negative integer, got {}",
              io::quote(position.dump()));
  const json& saved = member("settings");
  ERGON_CHECK(saved.is_object(), "[loader] the saved settings must be an object, got {}",
              io::quote(saved.type_name()));
  const json settings = source_->settings();
  for (const auto& [key, value] : settings.items()) {
    const auto found = saved.find(key);
    ERGON_CHECK(found != saved.end(), "[loader] the saved settings have no \"{}\"", key);
    ERGON_CHECK(*found == value, "[loader] saved with {} {}, this run has {}", key, io::quote(found->dump()),
                io::quote(value.dump()));
  }
  seek(position.get<std::int64_t>());
}

}  // namespace ergon::data
