#include "core/stream.h"

#include <array>
#include <atomic>
#include <map>
#include <mutex>

#include <cuda_runtime_api.h>

#include "core/cuda/check.h"
#include "core/cuda/index_fault.h"
#include "core/cuda_backend.h"
#include "core/error.h"

namespace ergon {
namespace {

cudaStream_t native(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }

constexpr std::size_t kStreams = 32;  // of a device, beside the default one

// Streams of one device, made when they are first asked for. They do not wait for the default stream, nor it
// for them.
struct DeviceStreams {
  std::mutex mutex;
  std::array<cudaStream_t, kStreams> streams{};
  std::atomic<std::size_t> next = 0;
  std::once_flag copy_once;
  cudaStream_t copy = nullptr;

  static cudaStream_t make(Device device) {
    DeviceGuard guard(device);
    cudaStream_t stream = nullptr;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
  }
};

DeviceStreams& streams_of(Device device) {
  static std::mutex mutex;
  static std::map<int, DeviceStreams> all;
  std::lock_guard lock(mutex);
  return all[device.index];
}

// The streams that guards of this thread have set, by device.
thread_local std::map<int, Stream> current_streams;

}  // namespace

Stream Stream::create(Device device) {
  check_available(device);
  if (device.is_cpu()) return {};
  DeviceStreams& streams = streams_of(device);
  std::lock_guard lock(streams.mutex);
  cudaStream_t& stream = streams.streams[streams.next++ % kStreams];
  if (stream == nullptr) stream = DeviceStreams::make(device);
  return {device, stream};
}

bool Stream::idle() const {
  if (device_.is_cpu()) return true;
  DeviceGuard guard(device_);
  const cudaError_t status = cudaStreamQuery(native(*this));
  if (status == cudaErrorNotReady) return false;
  CUDA_CHECK(status);
  return true;
}

void Stream::synchronize() const {
  if (device_.is_cpu()) return;
  DeviceGuard guard(device_);
  CUDA_CHECK(cudaStreamSynchronize(native(*this)));
  detail::throw_index_fault();
}

void Stream::wait(const Event& event) const {
  if (event.handle_ == nullptr) return;
  if (device_.is_cpu()) return event.synchronize();
  DeviceGuard guard(device_);
  CUDA_CHECK(cudaStreamWaitEvent(native(*this), static_cast<cudaEvent_t>(event.handle_.get()), 0));
}

void Event::record(const Stream& stream) {
  if (stream.device().is_cpu()) {
    handle_.reset();
    return;
  }
  DeviceGuard guard(stream.device());
  if (handle_ == nullptr || device_ != stream.device() || handle_.use_count() > 1) {
    cudaEvent_t event = nullptr;
    CUDA_CHECK(cudaEventCreateWithFlags(&event, timing_ ? cudaEventDefault : cudaEventDisableTiming));
    handle_ = std::shared_ptr<void>(event,
                                    [](void* handle) { cudaEventDestroy(static_cast<cudaEvent_t>(handle)); });
    device_ = stream.device();
  }
  CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(handle_.get()), native(stream)));
}

bool Event::passed() const {
  if (handle_ == nullptr) return true;
  const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(handle_.get()));
  if (status == cudaErrorNotReady) return false;
  CUDA_CHECK(status);
  return true;
}

void Event::synchronize() const {
  if (handle_ == nullptr) return;
  CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_.get())));
  detail::throw_index_fault();
}

float Event::elapsed_ms(const Event& start) const {
  ERGON_CHECK(timing_ && start.timing_ && handle_ != nullptr && start.handle_ != nullptr,
              "[elapsed_ms] expected two events made with timing and recorded on a CUDA stream");
  float milliseconds = 0;
  CUDA_CHECK(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(start.handle_.get()),
                                  static_cast<cudaEvent_t>(handle_.get())));
  return milliseconds;
}

Stream current_stream(Device device) {
  if (device.is_cpu()) return {};
  const auto found = current_streams.find(device.index);
  return found == current_streams.end() ? Stream(device, nullptr) : found->second;
}

StreamGuard::StreamGuard(const Stream& stream) : previous_(current_stream(stream.device())) {
  if (stream.device().is_cuda()) current_streams[stream.device().index] = stream;
}
StreamGuard::~StreamGuard() {
  if (previous_.device().is_cuda()) current_streams[previous_.device().index] = previous_;
}

Stream copy_stream(Device device) {
  check_available(device);
  if (device.is_cpu()) return {};
  DeviceStreams& streams = streams_of(device);
  std::call_once(streams.copy_once, [&] { streams.copy = DeviceStreams::make(device); });
  return {device, streams.copy};
}

DeviceGuard::DeviceGuard(Device device) {
  if (device.is_cpu()) return;
  int previous = 0;
  CUDA_CHECK(cudaGetDevice(&previous));
  if (previous == device.index) return;
  CUDA_CHECK(cudaSetDevice(device.index));
  previous_ = previous;
}
DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

void synchronize(Device device) {
  check_available(device);
  if (device.is_cpu()) return;
  DeviceGuard guard(device);
  CUDA_CHECK(cudaDeviceSynchronize());
  detail::throw_index_fault();
}

}  // namespace ergon
