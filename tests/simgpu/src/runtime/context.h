#pragma once
// The state behind the runtime's entry points: devices, modules, streams, errors.
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
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
  int priority = 0;
  u64 id = 0;
  TaskPtr last;
  std::shared_ptr<Capture> capture;
  std::vector<size_t> capture_last;  // nodes that the next one of this stream follows
};
struct Event {
  int device = 0;
  TaskPtr task;
  std::shared_ptr<double> milliseconds = std::make_shared<double>(0);  // when it happened last
  bool timed = true, recorded = false;
  std::shared_ptr<Capture> capture;
  size_t node = 0;
};
enum class WorkKind : u8 { kKernel, kCopy, kFill, kHost, kMemory, kOrder };
// A graph: work in an order that respects `after`.
struct Capture {
  struct Node {
    WorkKind kind;
    std::function<void()> run;
    std::vector<size_t> after;
  };
  std::vector<Node> nodes;
  std::vector<std::shared_ptr<void>> memory;  // that the graph allocates: given back with the last copy of it
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;  // that began it
  Stream* origin = nullptr;
  bool invalid = false;
};

struct FatBinary {
  std::string_view ptx;  // in the program's own memory
  std::string problem;
  std::map<std::string, int> registers;            // a thread, of kernels whose machine code is there too
  std::map<int, std::unique_ptr<Module>> modules;  // by device
};
struct Function {
  FatBinary* binary = nullptr;
  std::string name;
  int dynamic_shared_limit = 48 * 1024;
  int shared_carveout = cudaSharedmemCarveoutDefault;  // a wish that changes nothing
};
// Registers a thread as ptxas gave them out, 0 where there is only PTX.
int registers_of(const Function& function);
// Blocks of one multiprocessor of sm_80 at a time.
int resident_blocks(const Kernel& kernel, int registers, int threads, size_t dynamic_shared);

struct Symbol {
  FatBinary* binary = nullptr;
  std::string name;
};

constexpr int kSharedBytesOptIn = 163 * 1024;
void describe(cudaDeviceProp& properties);

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

  Stream& stream(cudaStream_t handle);
  bool known(const Stream* stream) const;
  // Gives work to a stream: done at once, or, with settings().order_seed, when something waits for it. An
  // error: a capture does not allow it.
  cudaError_t submit(Stream& stream, WorkKind kind, std::function<void()> run,
                     std::vector<TaskPtr> after = {});
  void wait(const TaskPtr& task);
  void wait_all(int device);
  void wait_all();
  // What a call that is not stream-ordered, or waits, must ask first: an error, and the captures that it
  // breaks are invalid, when this thread may not make it now.
  cudaError_t allowed_in_capture(bool waits_for_device = false);
  // Prints and records it; from now on every call returns its error.
  void fail(const Fault& fault);
  // Runs a kernel now; a Fault is printed and sticks.
  void launch(Function& function, const LaunchConfig& config, const std::vector<u8>& params);
  Kernel* kernel(Function& function, int device, cudaError_t& error);

 private:
  void execute(const TaskPtr& task);
  std::vector<TaskPtr> pending_;  // in order of submission
};
size_t draw(size_t count);  // a number below `count`, from settings().order_seed; 0 without one
// Calls run(node) for every node, in an order of the seed's that respects `after`.
void run_graph(const std::vector<Capture::Node>& nodes);

// Accounts of the memory pools; pool nullptr: the device's current one. The context's mutex is held.
struct Pool;
void pool_allocated(Pool* pool, int device, const void* pointer, u64 bytes);
void pool_released(const void* pointer);
void pools_synchronised();                       // they give back what is above their thresholds
u64 pool_unused(int device);                     // bytes that the device's pools keep and nothing uses
u64 pool_open_to(const Pool* pool, int device);  // other devices that may access its memory, a bit each
void pools_reset(int device);                    // nothing is allocated any more

extern thread_local int current_device;
extern thread_local cudaStreamCaptureMode capture_mode;  // of cudaThreadExchangeStreamCaptureMode
// Records and returns the error; a sticky one wins.
cudaError_t failed(cudaError_t error);
cudaError_t take_last_error(bool clear);
cudaError_t not_simulated(const char* what);  // says so, and is cudaErrorNotSupported
#define SIMGPU_NOT_SIMULATED(name) \
  case name:                       \
    return not_simulated(#name);

}  // namespace simgpu
