// Streams and events.
#include <algorithm>
#include <chrono>

#include "runtime/context.h"
#include "settings.h"

using namespace simgpu;

namespace {

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

constexpr int kLeastPriority = 0, kGreatestPriority = -5;  // of an A100

cudaError_t create_stream(cudaStream_t* out, unsigned flags, int priority) {
  if (out == nullptr || (flags & ~unsigned{cudaStreamNonBlocking}) != 0) return failed(cudaErrorInvalidValue);
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  auto stream = std::make_unique<Stream>();
  stream->device = current_device;
  stream->blocking = (flags & cudaStreamNonBlocking) == 0;
  stream->priority = std::clamp(priority, kGreatestPriority, kLeastPriority);
  static u64 ids = 0;
  stream->id = ++ids;
  *out = reinterpret_cast<cudaStream_t>(stream.get());
  c.streams.push_back(std::move(stream));
  return failed(cudaSuccess);
}
Event& event_of(cudaEvent_t e) { return *reinterpret_cast<Event*>(e); }
cudaError_t not_in_capture(Stream& s) {
  if (s.capture == nullptr) return cudaSuccess;
  s.capture->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}

}  // namespace

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* out) { return create_stream(out, 0, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned flags) {
  return create_stream(out, flags, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned flags, int priority) {
  return create_stream(out, flags, priority);
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  auto* stream = reinterpret_cast<Stream*>(handle);
  const auto found =
      std::find_if(c.streams.begin(), c.streams.end(), [&](const auto& s) { return s.get() == stream; });
  if (found == c.streams.end()) return failed(cudaErrorInvalidResourceHandle);
  c.wait(stream->last);
  c.streams.erase(found);
  return failed(cudaSuccess);
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  Stream& s = c.stream(handle);
  if (const cudaError_t e = not_in_capture(s); e != cudaSuccess) return failed(e);
  c.wait(s.last);
  pools_synchronised();
  return failed(cudaSuccess);
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  if (const cudaError_t e = not_in_capture(c.stream(handle)); e != cudaSuccess) return failed(e);
  const TaskPtr last = c.stream(handle).last;
  if (last == nullptr || last->done) return failed(cudaSuccess);
  c.wait(last);  // a loop that polls must end: the next query says so
  return cudaErrorNotReady;
}
cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  return *priority = Context::get().stream(handle).priority, failed(cudaSuccess);
}
cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* device) {
  return *device = Context::get().stream(handle).device, failed(cudaSuccess);
}
cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long* id) {
  return *id = Context::get().stream(handle).id, failed(cudaSuccess);
}
cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  *flags = Context::get().stream(handle).blocking ? cudaStreamDefault : cudaStreamNonBlocking;
  return failed(cudaSuccess);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return *least = kLeastPriority, *greatest = kGreatestPriority, failed(cudaSuccess);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  Context& c = Context::get();
  return failed(c.submit(c.stream(handle), WorkKind::kHost, [=] { function(data); }));
}
cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function, void* data, unsigned) {
  Context& c = Context::get();
  return failed(
      c.submit(c.stream(handle), WorkKind::kHost, [=] { function(handle, Context::get().sticky, data); }));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t e, unsigned) {
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  Stream& s = c.stream(handle);
  Event& event = event_of(e);
  if (event.capture != nullptr) {
    if (s.capture == nullptr) s.capture = event.capture;  // the stream joins
    if (s.capture != event.capture) return failed(cudaErrorStreamCaptureMerge);
    s.capture_last.push_back(event.node);
    return failed(cudaSuccess);
  }
  if (event.task == nullptr || event.task->done) return failed(cudaSuccess);
  if (s.capture != nullptr) return failed(cudaErrorStreamCaptureIsolation);  // it would wait for work outside
  return failed(c.submit(s, WorkKind::kOrder, [] {}, {event.task}));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
  auto* event = new Event;
  event->device = current_device;
  event->timed = (flags & cudaEventDisableTiming) == 0;
  *out = reinterpret_cast<cudaEvent_t>(event);
  return failed(cudaSuccess);
}
cudaError_t cudaEventCreate(cudaEvent_t* out) { return cudaEventCreateWithFlags(out, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  delete &event_of(e);
  return failed(cudaSuccess);
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t handle, unsigned) {
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  Stream& s = c.stream(handle);
  Event& event = event_of(e);
  if (event.device != s.device) return failed(cudaErrorInvalidResourceHandle);
  const auto now = [when = event.milliseconds] { *when = now_ms(); };
  if (const cudaError_t error = c.submit(s, WorkKind::kOrder, now); error != cudaSuccess)
    return failed(error);
  event.recorded = true;
  if (s.capture != nullptr) {
    event.capture = s.capture;
    event.node = s.capture_last.front();
  } else {
    event.capture.reset();
    event.task = s.last;
  }
  return failed(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream) {
  return cudaEventRecordWithFlags(e, stream, 0);
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  if (event_of(e).capture != nullptr) return failed(cudaErrorCapturedEvent);
  Context::get().wait(event_of(e).task);
  return failed(cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
  if (event_of(e).capture != nullptr) return failed(cudaErrorCapturedEvent);
  const TaskPtr task = event_of(e).task;
  if (task == nullptr || task->done) return failed(cudaSuccess);
  Context::get().wait(task);
  return cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* out, cudaEvent_t from, cudaEvent_t to) {
  const Event &a = event_of(from), &b = event_of(to);
  if (!a.timed || !b.timed || !a.recorded || !b.recorded || a.device != b.device)
    return failed(cudaErrorInvalidResourceHandle);
  if ((a.task != nullptr && !a.task->done) || (b.task != nullptr && !b.task->done))
    return failed(cudaErrorNotReady);
  *out = static_cast<float>(*b.milliseconds - *a.milliseconds);
  return failed(cudaSuccess);
}

}  // extern "C"
