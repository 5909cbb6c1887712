#pragma once
// The state behind the runtime's entry points: devices, modules, streams, errors.
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include <cuda_runtime_api.h>

#include "module.h"

namespace simgpu {

// A piece of work that was given to a stream. Tasks keep what they wait for.
struct Task {
  std::function<void()> run;
  std::vector<std::shared_ptr<Task>> after;
  bool done = false;
};
using TaskPtr = std::shared_ptr<Task>;

struct Capture;
struct Stream {
  int device = 0;
  bool blocking = true;  // with respect to the legacy default stream
  TaskPtr last;
  std::shared_ptr<Capture> capture;
  std::vector<size_t> capture_last;  // nodes that the next one of this stream follows
};
struct Event {
  TaskPtr task;
  double milliseconds = 0;  // when it happened
  bool timed = true, recorded = false;
  std::shared_ptr<Capture> capture;
  size_t node = 0;
};
// A graph: work in an order that respects `after`.
struct Capture {
  struct Node {
    std::function<void()> run;
    std::vector<size_t> after;
  };
  std::vector<Node> nodes;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  Stream* origin = nullptr;
  bool invalid = false;
};

struct FatBinary {
  std::string ptx, problem;
  std::map<std::string, int> registers;            // a thread, of kernels whose machine code is there too
  std::map<int, std::unique_ptr<Module>> modules;  // by device
};
struct Function {
  FatBinary* binary = nullptr;
  std::string name;
  int dynamic_shared_limit = 48 * 1024;
};
// Registers a thread as ptxas gave them out, 0 where there is only PTX.
int registers_of(const Function& function);
// Blocks of one multiprocessor of sm_80 at a time.
int resident_blocks(const Kernel& kernel, int registers, int threads, size_t dynamic_shared);

struct Symbol {
  FatBinary* binary = nullptr;
  std::string name;
};

constexpr u64 kDeviceBytes = u64{40} << 30;  // of an A100
constexpr int kSharedBytesOptIn = 163 * 1024;

class Context {
 public:
  static Context& get();

  std::recursive_mutex mutex;
  std::unordered_map<const void*, Function> functions;
  std::unordered_map<const void*, Symbol> symbols;
  std::vector<std::unique_ptr<FatBinary>> binaries;
  std::vector<std::unique_ptr<Stream>> streams;  // created ones
  Stream defaults[64];
  cudaError_t sticky = cudaSuccess;  // a failed kernel leaves the context unusable, as on hardware
  std::string fault;                 // its report

  Stream& stream(cudaStream_t handle);
  bool known(const Stream* stream) const;
  // Gives work to a stream: done at once, or, with settings().order_seed, when something waits for it.
  void submit(Stream& stream, std::function<void()> run, std::vector<TaskPtr> after = {});
  void wait(const TaskPtr& task);
  void wait_all(int device);
  // Runs a kernel now; a Fault is printed and sticks.
  void launch(Function& function, const LaunchConfig& config, const std::vector<u8>& params);
  Kernel* kernel(Function& function, int device, cudaError_t& error);

 private:
  void execute(const TaskPtr& task);
  std::vector<TaskPtr> pending_;  // in order of submission
  u64 draw_ = 0;
};

// Accounts of the memory pools; pool nullptr: the device's current one. The context's mutex is held.
struct Pool;
void pool_allocated(Pool* pool, int device, const void* pointer, u64 bytes);
void pool_released(const void* pointer);

extern thread_local int current_device;
// Records and returns the error; a sticky one wins.
cudaError_t failed(cudaError_t error);
cudaError_t take_last_error(bool clear);

}  // namespace simgpu
