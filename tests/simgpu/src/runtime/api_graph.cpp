// Graphs: made by capturing streams, instantiated, updated, launched.
#include <algorithm>

#include "runtime/context.h"

using namespace simgpu;

namespace {

Capture& capture_of(cudaGraph_t g) { return *reinterpret_cast<Capture*>(g); }
Capture& capture_of(cudaGraphExec_t g) { return *reinterpret_cast<Capture*>(g); }

// The streams that take part in a capture leave it.
void end_capture(const std::shared_ptr<Capture>& capture) {
  for (auto& s : Context::get().streams) {
    if (s->capture == capture) s->capture.reset(), s->capture_last.clear();
  }
}

// Every node of a stream that joined must lead back to the origin.
bool all_joined(const Capture& capture) {
  std::vector<bool> reached(capture.nodes.size());
  std::vector<size_t> open(capture.origin->capture_last);
  while (!open.empty()) {
    const size_t n = open.back();
    open.pop_back();
    if (reached[n]) continue;
    reached[n] = true;
    open.insert(open.end(), capture.nodes[n].after.begin(), capture.nodes[n].after.end());
  }
  return std::find(reached.begin(), reached.end(), false) == reached.end();
}

}  // namespace

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Context& c = Context::get();
  const std::lock_guard lock(c.mutex);
  Stream& s = c.stream(handle);
  if (&s == &c.defaults[s.device]) return failed(cudaErrorStreamCaptureUnsupported);
  if (s.capture != nullptr) return failed(cudaErrorIllegalState);
  s.capture = std::make_shared<Capture>();
  s.capture->mode = mode;
  s.capture->thread = std::this_thread::get_id();
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
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
    return failed(cudaErrorStreamCaptureWrongThread);
  const bool joined = all_joined(*capture);
  end_capture(capture);
  if (capture->invalid) return failed(cudaErrorStreamCaptureInvalidated);
  if (!joined) return failed(cudaErrorStreamCaptureUnjoined);
  *out = reinterpret_cast<cudaGraph_t>(new Capture(*capture));
  return failed(cudaSuccess);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* out) {
  const auto& capture = Context::get().stream(handle).capture;
  *out = capture == nullptr ? cudaStreamCaptureStatusNone
         : capture->invalid ? cudaStreamCaptureStatusInvalidated
                            : cudaStreamCaptureStatusActive;
  return failed(cudaSuccess);
}
// The graph and its nodes are opaque while it is captured.
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* count) {
  if (graph != nullptr || nodes != nullptr || edges != nullptr || count != nullptr)
    return not_simulated("what cudaStreamGetCaptureInfo tells of the graph");
  if (id != nullptr) *id = reinterpret_cast<u64>(Context::get().stream(handle).capture.get());
  return cudaStreamIsCapturing(handle, status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return std::swap(*mode, capture_mode), failed(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long flags) {
  if ((flags & cudaGraphInstantiateFlagDeviceLaunch) != 0)
    return not_simulated("cudaGraphInstantiateFlagDeviceLaunch");
  *out = reinterpret_cast<cudaGraphExec_t>(new Capture(capture_of(graph)));
  return failed(cudaSuccess);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiate(out, graph, flags);
}
// Takes over the parameters of a graph with the same nodes and edges.
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo* info) {
  Capture& old = capture_of(exec);
  const Capture& now = capture_of(graph);
  const auto same = [](auto&& member, const Capture& a, const Capture& b) {
    return std::equal(a.nodes.begin(), a.nodes.end(), b.nodes.begin(), b.nodes.end(),
                      [&](const auto& x, const auto& y) { return x.*member == y.*member; });
  };
  *info = {};
  info->result = !same(&Capture::Node::after, old, now)  ? cudaGraphExecUpdateErrorTopologyChanged
                 : !same(&Capture::Node::kind, old, now) ? cudaGraphExecUpdateErrorNodeTypeChanged
                                                         : cudaGraphExecUpdateSuccess;
  if (info->result != cudaGraphExecUpdateSuccess) return failed(cudaErrorGraphExecUpdateFailure);
  old = now;
  return failed(cudaSuccess);
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return failed(cudaSuccess); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  Context& c = Context::get();
  if (c.stream(handle).capture != nullptr) return not_simulated("cudaGraphLaunch in a stream that captures");
  // The memory of the graph lives until it has run.
  return failed(
      c.submit(c.stream(handle), WorkKind::kOrder,
               [nodes = capture_of(exec).nodes, memory = capture_of(exec).memory] { run_graph(nodes); }));
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes != nullptr) return not_simulated("cudaGraphGetNodes, but for the number,");
  *count = capture_of(graph).nodes.size();
  return failed(cudaSuccess);
}
cudaError_t cudaGraphClone(cudaGraph_t* out, cudaGraph_t graph) {
  *out = reinterpret_cast<cudaGraph_t>(new Capture(capture_of(graph)));
  return failed(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete &capture_of(graph);
  return failed(cudaSuccess);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete &capture_of(exec);
  return failed(cudaSuccess);
}

}  // extern "C"
