#pragma once
// Decoded PTX: what the parser produces and the executor runs.
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "memory.h"

namespace simgpu {

struct Warp;
struct Insn;
using Handler = void (*)(Warp&, const Insn&, u32 mask);

enum class Flow : u8 { kNormal, kBranch, kExit, kBlockBarrier, kWarpBarrier, kWarpSync };

// A register of `width` bytes a lane; lanes of one register are contiguous: T[32] at byte `offset` of the warp's file.
// Predicates are one u32 mask (width 0). Immediates and special registers occupy slots filled before the block starts.
struct Operand {
  u32 offset = 0;
  u8 width = 0;
};

enum class Space : u8 { kGeneric, kGlobal, kShared, kLocal, kParam };

struct Insn {
  Handler run = nullptr;
  Flow flow = Flow::kNormal;
  Space space = Space::kGeneric;
  bool guard_negated = false;
  u8 count = 0;       // vector elements, or operands of mma
  u8 bytes = 0;       // bytes of one memory element
  u8 mode = 0;        // meaning by handler
  bool is_signed = false;
  int guard = -1;     // byte offset of the predicate
  int target = -1;    // branch target
  int file = 0, line = 0;
  long long imm = 0;  // address offset, constant
  Operand op[18];
};

struct Param {
  std::string name;
  u32 offset = 0, size = 0;
};

struct Constant {
  Operand slot;
  u64 value = 0;
};
struct Special {
  Operand slot;
  int index = 0;
};

struct Kernel {
  std::string name, body;
  std::vector<Param> params;
  u32 param_bytes = 0;
  std::vector<Insn> code;
  std::vector<Constant> constants;
  std::vector<Special> specials;
  u32 file_bytes = 0;  // register file of one warp
  u32 shared_bytes = 0, local_bytes = 0;
  int num_registers = 0;
  bool decoded = false;
  struct Module* module = nullptr;
};

struct Variable {
  u64 address = 0, size = 0;
};

struct Module {
  std::string ptx;
  std::map<std::string, Kernel> kernels;
  std::map<std::string, Variable> variables;
  std::map<std::string, u32> shared;       // module-level .shared arrays: bytes
  std::vector<std::string> dynamic_shared; // .extern .shared
  std::map<int, std::string> files;
};

struct PtxError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::unique_ptr<Module> parse_module(std::string ptx);
void decode(Kernel& kernel);  // idempotent; throws PtxError that names the instruction

// decode_ops.cpp: fills `run` and friends for one opcode from its dot-separated parts; false: unknown.
struct Opcode {
  std::string text;
  std::vector<std::string_view> part;
  bool has(std::string_view modifier) const;
  std::string_view type() const { return part.back(); }
};
bool select_handler(Insn& insn, const Opcode& opcode, size_t num_operands);
int type_bytes(std::string_view type);

// The PTX that is embedded in nvcc's fat binary; throws PtxError with the compile flag to use.
std::string extract_ptx(const void* fat_binary_wrapper);

struct Dim {
  u32 x = 1, y = 1, z = 1;
};
struct LaunchCounters {
  u64 warp_instructions = 0, lane_instructions = 0, blocks = 0;
};
// Runs to completion; throws PtxError on a checker's report.
LaunchCounters execute(Kernel& kernel, Dim grid, Dim block, void** args, size_t dynamic_shared, bool cooperative);

}  // namespace simgpu
