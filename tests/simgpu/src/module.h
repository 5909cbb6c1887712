#pragma once
// What the PTX front end gives to the runtime: a parsed module, its kernels and variables, and the launch of
// a kernel.
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "counters.h"
#include "types.h"

namespace simgpu {

constexpr int kMultiprocessors = 108;  // of an A100

struct KernelParam {
  std::string name;
  u32 offset = 0, size = 0, align = 1;  // bytes in the parameter block
};

struct Variable {
  std::string name;
  u64 address = 0, size = 0;  // of the instance that this module allocated on its device
  bool constant = false;
};

std::string demangled(const std::string& name);

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual const std::string& name() const = 0;          // mangled, as registered
  virtual const std::string& display_name() const = 0;  // demangled
  virtual std::span<const KernelParam> params() const = 0;
  virtual u32 param_bytes() const = 0;
  virtual u32 static_shared_bytes() const = 0;
  virtual u32 local_bytes() const = 0;            // per thread
  virtual u32 max_threads_per_block() const = 0;  // .maxntid, or 1024
};

class Module {
 public:
  virtual ~Module() = default;
  virtual Kernel* find_kernel(std::string_view name) = 0;            // nullptr: none
  virtual const Variable* find_variable(std::string_view name) = 0;  // nullptr: none
  virtual std::string_view target() const = 0;                       // "sm_80"
};

// Module-level variables are allocated (MemoryKind::kVariable) and initialised on `device`. Kernel bodies are
// decoded on their first launch and kept. Throws PtxError.
std::unique_ptr<Module> parse_module(std::string ptx, int device);

struct LaunchConfig {
  Dim3 grid, block;
  u32 dynamic_shared_bytes = 0;
  bool cooperative = false;  // every block resident at once
  int device = 0;
  u64 grid_workspace = 0;  // of a cooperative launch: zeroed device memory for the grid's barrier
  u64 order_seed = 0;      // 0: blocks and warps in order; else a legal order drawn from the seed
};

// Runs to completion on host threads; `params` is the parameter block (param_bytes() long). Printf output
// goes to stdout. Throws Fault on a checker's report or a trap, PtxError on an instruction that is not
// supported.
LaunchCounters run_kernel(Kernel& kernel, const LaunchConfig& config, std::span<const u8> params);

}  // namespace simgpu
