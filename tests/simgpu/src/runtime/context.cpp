#include "runtime/context.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "memory.h"
#include "runtime/profile.h"
#include "settings.h"

namespace simgpu {

thread_local int current_device = 0;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
namespace {
thread_local cudaError_t last_error = cudaSuccess;
}

Context& Context::get() {
  static auto* const context = new Context;  // host code unregisters after static destructors have begun
  return *context;
}

cudaError_t failed(cudaError_t error) {
  const cudaError_t sticky = Context::get().sticky;
  if (sticky != cudaSuccess) return last_error = sticky;
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}
cudaError_t not_simulated(const char* what) {
  std::fprintf(stderr, "simgpu: %s is not simulated\n", what);
  return failed(cudaErrorNotSupported);
}
cudaError_t take_last_error(bool clear) {
  const cudaError_t sticky = Context::get().sticky, error = sticky != cudaSuccess ? sticky : last_error;
  if (clear) last_error = cudaSuccess;
  return error;
}

Stream& Context::stream(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread) {
    Stream& s = defaults[current_device];
    s.device = current_device;
    return s;
  }
  return *reinterpret_cast<Stream*>(handle);
}
bool Context::known(const Stream* stream) const {
  if (stream >= defaults && stream < defaults + 64) return true;
  return std::any_of(streams.begin(), streams.end(), [&](const auto& s) { return s.get() == stream; });
}

cudaError_t Context::submit(Stream& stream, WorkKind kind, std::function<void()> run,
                            std::vector<TaskPtr> after) {
  const std::lock_guard lock(mutex);
  if (stream.capture != nullptr) {
    Capture& capture = *stream.capture;
    if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
    capture.nodes.push_back({kind, std::move(run), stream.capture_last});
    stream.capture_last = {capture.nodes.size() - 1};
    return cudaSuccess;
  }
  auto task = std::make_shared<Task>();
  task->run = std::move(run);
  task->after = std::move(after);
  const auto follow = [&](const TaskPtr& other) {
    if (other != nullptr && !other->done) task->after.push_back(other);
  };
  follow(stream.last);
  // The legacy default stream waits for the blocking streams of its device, and they for it.
  Stream& legacy = defaults[stream.device];
  if (&stream == &legacy) {
    for (const auto& s : streams) {
      if (!s->blocking || s->device != stream.device) continue;
      if (s->capture != nullptr) {
        s->capture->invalid = true;
        return cudaErrorStreamCaptureImplicit;
      }
      follow(s->last);
    }
  } else if (stream.blocking) {
    follow(legacy.last);
  }
  stream.last = task;
  if (settings().order_seed == 0)
    execute(task);
  else
    pending_.push_back(task);
  return cudaSuccess;
}

cudaError_t Context::allowed_in_capture(bool waits_for_device) {
  const std::lock_guard lock(mutex);
  bool broken = false;
  for (const auto& s : streams) {
    if (s->capture == nullptr) continue;
    const bool mine = s->capture->thread == std::this_thread::get_id();
    const bool forbids = s->capture->mode == cudaStreamCaptureModeGlobal
                         || (s->capture->mode == cudaStreamCaptureModeThreadLocal && mine);
    if (waits_for_device ? s->device != current_device
                         : !forbids || capture_mode == cudaStreamCaptureModeRelaxed)
      continue;
    s->capture->invalid = broken = true;
  }
  return broken ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

void Context::execute(const TaskPtr& task) {
  if (task->done) return;
  for (const TaskPtr& before : task->after) execute(before);
  task->after.clear();
  task->run();
  task->run = nullptr;
  task->done = true;
}

size_t draw(size_t count) {
  static u64 state = 0;
  const u64 seed = settings().order_seed;
  if (seed == 0) return 0;
  state = (state + seed) * 6364136223846793005u + 1442695040888963407u;
  return (state >> 33) % count;
}

void run_graph(const std::vector<Capture::Node>& nodes) {
  std::vector<bool> done(nodes.size());
  for (size_t left = nodes.size(); left > 0; --left) {
    std::vector<size_t> ready;
    for (size_t i = 0; i < nodes.size(); ++i) {
      const auto& after = nodes[i].after;
      if (!done[i] && std::all_of(after.begin(), after.end(), [&](size_t n) { return done[n]; }))
        ready.push_back(i);
    }
    const size_t chosen = ready[draw(ready.size())];
    nodes[chosen].run();
    done[chosen] = true;
  }
}

// Ready tasks run in an order that the seed draws until the wanted one is done.
void Context::wait(const TaskPtr& task) {
  const std::lock_guard lock(mutex);
  while (task != nullptr && !task->done) {
    std::vector<size_t> ready;
    for (size_t i = 0; i < pending_.size(); ++i) {
      const auto& after = pending_[i]->after;
      if (std::all_of(after.begin(), after.end(), [](const TaskPtr& t) { return t->done; }))
        ready.push_back(i);
    }
    const size_t chosen = ready[draw(ready.size())];
    const TaskPtr next = pending_[chosen];
    pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(chosen));
    execute(next);
  }
}
void Context::wait_all() {
  for (int device = 0; device < settings().devices; ++device) wait_all(device);
}
void Context::wait_all(int device) {
  const std::lock_guard lock(mutex);
  wait(defaults[device].last);
  for (const auto& s : streams) {
    if (s->device == device) wait(s->last);
  }
  pools_synchronised();
}

void Context::fail(const Fault& f) {
  std::fprintf(stderr, "simgpu: %s\n", f.what());
  sticky = f.kind == FaultKind::kAssert       ? cudaErrorAssert
           : f.kind == FaultKind::kMisaligned ? cudaErrorMisalignedAddress
           : f.kind == FaultKind::kOutOfBounds || f.kind == FaultKind::kUseAfterFree
                   || f.kind == FaultKind::kNoPeerAccess
               ? cudaErrorIllegalAddress
               : cudaErrorLaunchFailure;
  record_fault(f);
}

Kernel* Context::kernel(Function& function, int device, cudaError_t& error) {
  FatBinary& binary = *function.binary;
  error = cudaSuccess;
  try {
    if (!binary.problem.empty()) throw PtxError(binary.problem);
    auto& module = binary.modules[device];
    if (module == nullptr) module = parse_module(std::string(binary.ptx), device);
    if (Kernel* kernel = module->find_kernel(function.name)) return kernel;
    throw PtxError("simulated GPU: it is not in the PTX of its fat binary");
  } catch (const PtxError& e) {
    std::fprintf(stderr, "simgpu: kernel %s: %s\n", demangled(function.name).c_str(), e.what());
    error = cudaErrorNoKernelImageForDevice;
    return nullptr;
  }
}

void Context::launch(Function& function, const LaunchConfig& config, const std::vector<u8>& params) {
  if (sticky != cudaSuccess) return;
  cudaError_t error;
  Kernel* k = kernel(function, config.device, error);
  if (k == nullptr) {
    sticky = error;
    return;
  }
  try {
    LaunchConfig c = config;
    c.order_seed = settings().order_seed;
    if (c.cooperative) {
      void* const workspace = memory::allocate(64, MemoryKind::kVariable, config.device, kInitialised,
                                               "the grid barrier's workspace");
      std::memset(workspace, 0, 64);
      c.grid_workspace = reinterpret_cast<u64>(workspace);
    }
    LaunchCounters counters = run_kernel(*k, c, params);
    if (c.cooperative) memory::release(reinterpret_cast<void*>(c.grid_workspace));
    record_launch(c, *k, registers_of(function), std::move(counters));
  } catch (const Fault& f) {
    fail(f);
  } catch (const PtxError& e) {
    std::fprintf(stderr, "simgpu: kernel %s: %s\n", demangled(function.name).c_str(), e.what());
    sticky = cudaErrorInvalidPtx;
  }
}

}  // namespace simgpu
