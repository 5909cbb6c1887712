#pragma once

// Queues of work on a device, and marks in them.
//
// Work on a CUDA device is asynchronous: an op puts its kernels on the current stream of the calling thread
// and returns. On one stream things run in order; between streams an Event orders them. On the CPU work is
// done when a call returns; its one stream and its events are always idle.

#include <memory>

#include "core/device.h"

namespace ergon {

class Event;

// A handle on a stream. Streams last as long as the process, so a handle is never stale.
class Stream {
 public:
  Stream() = default;  // the CPU's
  Stream(Device device, void* handle) : device_(device), handle_(handle) {}

  // One of the device's 32 streams beside the default one, in turn: they run at the same time as others.
  // Throws Error where the device is not available.
  static Stream create(Device device);

  Device device() const { return device_; }
  // The cudaStream_t; null for the default stream.
  void* handle() const { return handle_; }

  // Has everything put on the stream finished?
  bool idle() const;
  // Waits until it has. Throws Error if work on the device has failed.
  void synchronize() const;
  // Lets what is put on this stream from now on wait for `event`, which may be of another stream or device.
  void wait(const Event& event) const;

  friend bool operator==(const Stream&, const Stream&) = default;

 private:
  Device device_ = Device::cpu();
  void* handle_ = nullptr;
};

// A mark in a stream: passed once all that was on the stream when it was recorded has finished. Copies share
// the mark. An event that was never recorded counts as passed.
class Event {
 public:
  // timing: elapsed_ms needs it; without it the event is cheaper.
  explicit Event(bool timing = false) : timing_(timing) {}

  void record(const Stream& stream);
  bool passed() const;
  // Waits until it is passed. Throws Error if work on the device has failed.
  void synchronize() const;
  // Milliseconds from `start` to this event, both recorded with timing on one CUDA device, passed.
  float elapsed_ms(const Event& start) const;

 private:
  friend class Stream;
  [[maybe_unused]] bool timing_;  // not without CUDA
  Device device_ = Device::cpu();
  std::shared_ptr<void> handle_;  // cudaEvent_t; null: never recorded, or on the CPU
};

// Where this thread's work on `device` goes: the default stream, unless a StreamGuard says otherwise.
Stream current_stream(Device device);

// Makes `stream` the current stream of its device for a scope, on this thread.
class StreamGuard {
 public:
  explicit StreamGuard(const Stream& stream);
  ~StreamGuard();
  StreamGuard(const StreamGuard&) = delete;
  StreamGuard& operator=(const StreamGuard&) = delete;

 private:
  [[maybe_unused]] Stream previous_;
};

// The stream that asynchronous copies between the host and `device` run on, beside the computation.
Stream copy_stream(Device device);

// Makes `device` the one that this thread's calls of the CUDA runtime mean, for a scope. The library does so
// by itself in each of its calls; this is for calls of one's own. Does nothing for the CPU.
class DeviceGuard {
 public:
  explicit DeviceGuard(Device device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  [[maybe_unused]] int previous_ = -1;  // -1: nothing to restore
};

// Waits for all streams of `device`. Throws Error if work on it has failed: an error of a kernel shows at the
// latest here.
void synchronize(Device device);

}  // namespace ergon
