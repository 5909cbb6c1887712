// Streams, events, graphs by stream capture.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "runtime/context.h"
#include "settings.h"

using namespace simgpu;

namespace {

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

cudaError_t create_stream(cudaStream_t* out, unsigned flags) {
  if (out == nullptr) return failed(cudaErrorInvalidValue);
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  auto stream = std::make_unique<Stream>();
  stream->device = current_device;
  stream->blocking = (flags & cudaStreamNonBlocking) == 0;
  *out = reinterpret_cast<cudaStream_t>(stream.get());
  c.streams.push_back(std::move(stream));
  return failed(cudaSuccess);
}
Event& event_of(cudaEvent_t e) { return *reinterpret_cast<Event*>(e); }
Capture& capture_of(cudaGraph_t g) { return *reinterpret_cast<Capture*>(g); }

// The streams that take part in a capture leave it.
void end_capture(const std::shared_ptr<Capture>& capture) {
  Context& c = Context::get();
  const auto leave = [&](Stream& s) {
    if (s.capture == capture) s.capture.reset(), s.capture_last.clear();
  };
  for (auto& s : c.streams) leave(*s);
}

}  // namespace

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* out) { return create_stream(out, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned flags) { return create_stream(out, flags); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned flags, int) {
  return create_stream(out, flags);
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
  if (s.capture != nullptr) return failed(cudaErrorStreamCaptureUnsupported);
  c.wait(s.last);
  return failed(cudaSuccess);
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  const TaskPtr last = c.stream(handle).last;
  if (last == nullptr || last->done) return failed(cudaSuccess);
  c.wait(last);  // a loop that polls must end: the next query says so
  return cudaErrorNotReady;
}
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, failed(cudaSuccess); }
cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  *flags = Context::get().stream(handle).blocking ? cudaStreamDefault : cudaStreamNonBlocking;
  return failed(cudaSuccess);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return *least = 0, *greatest = 0, failed(cudaSuccess);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  Context& c = Context::get();
  c.submit(c.stream(handle), [=] { function(data); });
  return failed(cudaSuccess);
}
cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function, void* data, unsigned) {
  Context& c = Context::get();
  c.submit(c.stream(handle), [=] { function(handle, Context::get().sticky, data); });
  return failed(cudaSuccess);
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
  if (event.task != nullptr && !event.task->done) c.submit(s, [] {}, {event.task});
  return failed(cudaSuccess);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
  auto* event = new Event;
  event->timed = (flags & cudaEventDisableTiming) == 0;
  *out = reinterpret_cast<cudaEvent_t>(event);
  return failed(cudaSuccess);
}
cudaError_t cudaEventCreate(cudaEvent_t* out) { return cudaEventCreateWithFlags(out, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  Context::get().wait(event_of(e).task);
  delete &event_of(e);
  return failed(cudaSuccess);
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t handle, unsigned) {
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  Stream& s = c.stream(handle);
  Event& event = event_of(e);
  c.submit(s, [&event] { event.milliseconds = now_ms(); });
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
  Context::get().wait(event_of(e).task);
  return failed(cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
  const TaskPtr task = event_of(e).task;
  if (task == nullptr || task->done) return failed(cudaSuccess);
  Context::get().wait(task);
  return cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* out, cudaEvent_t from, cudaEvent_t to) {
  const Event &a = event_of(from), &b = event_of(to);
  if (!a.timed || !b.timed || !a.recorded || !b.recorded) return failed(cudaErrorInvalidResourceHandle);
  if ((a.task != nullptr && !a.task->done) || (b.task != nullptr && !b.task->done))
    return failed(cudaErrorNotReady);
  *out = static_cast<float>(b.milliseconds - a.milliseconds);
  return failed(cudaSuccess);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  Stream& s = c.stream(handle);
  if (&s == &c.defaults[s.device]) return failed(cudaErrorStreamCaptureUnsupported);
  if (s.capture != nullptr) return failed(cudaErrorIllegalState);
  s.capture = std::make_shared<Capture>();
  s.capture->mode = mode;
  s.capture->origin = &s;
  return failed(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* out) {
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  Stream& s = c.stream(handle);
  *out = nullptr;
  if (s.capture == nullptr) return failed(cudaErrorIllegalState);
  const std::shared_ptr<Capture> capture = s.capture;
  if (capture->origin != &s) return failed(cudaErrorStreamCaptureUnmatched);
  // Every node of a stream that joined must lead back to the origin.
  std::vector<bool> reached(capture->nodes.size());
  std::vector<size_t> open(s.capture_last);
  while (!open.empty()) {
    const size_t n = open.back();
    open.pop_back();
    if (reached[n]) continue;
    reached[n] = true;
    open.insert(open.end(), capture->nodes[n].after.begin(), capture->nodes[n].after.end());
  }
  end_capture(capture);
  if (std::find(reached.begin(), reached.end(), false) != reached.end())
    return failed(cudaErrorStreamCaptureUnjoined);
  *out = reinterpret_cast<cudaGraph_t>(new Capture(*capture));
  return failed(cudaSuccess);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* out) {
  *out = Context::get().stream(handle).capture != nullptr ? cudaStreamCaptureStatusActive
                                                          : cudaStreamCaptureStatusNone;
  return failed(cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  *out = reinterpret_cast<cudaGraphExec_t>(new Capture(capture_of(graph)));
  return failed(cudaSuccess);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiate(out, graph, flags);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  Context& c = Context::get();
  const auto& graph = *reinterpret_cast<Capture*>(exec);
  c.submit(c.stream(handle), [nodes = graph.nodes] {
    for (const Capture::Node& node : nodes) node.run();  // captured in an order that respects `after`
  });
  return failed(cudaSuccess);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes != nullptr) return failed(cudaErrorNotSupported);
  *count = capture_of(graph).nodes.size();
  return failed(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete &capture_of(graph);
  return failed(cudaSuccess);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete reinterpret_cast<Capture*>(exec);
  return failed(cudaSuccess);
}

}  // extern "C"
