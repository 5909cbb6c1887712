#pragma once
// Decoded PTX: what the decoder produces and the executor runs.
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "counters.h"
#include "module.h"
#include "types.h"

namespace simgpu {

struct Warp;
struct Insn;
using Handler = void (*)(Warp&, const Insn&, u32 mask);

enum class Flow : u8 {
  kNormal,
  kBranch,
  kBranchIndexed,
  kCall,
  kReturn,
  kExit,
  kBlockBarrier,
  kWarpBarrier,
  kWarpSync
};
enum class Space : u8 { kGeneric, kGlobal, kShared, kLocal, kParam, kConst, kFrame };

constexpr u32 kNone = ~u32{0};

// Operands are byte offsets in the warp's current frame. A register of width w is an array of 32 lanes, w
// bytes each; a predicate is a u32 mask of lanes. Immediates and special registers occupy slots that are
// filled when a frame is made.
struct Insn {
  Handler run = nullptr;
  Flow flow = Flow::kNormal;
  Space space = Space::kGeneric;
  InstructionClass category = InstructionClass::kInteger;
  u8 bytes = 0;          // of one memory element, or the operand's width
  u8 count = 0;          // vector elements, or operands
  u8 mode = 0;           // meaning by handler
  u8 address_bytes = 8;  // width of the register with the address
  bool guard_negated = false;
  bool relaxed = false;       // volatile, relaxed, acquire, release, atomic: no data race
  bool synchronises = false;  // may order blocks: wider than a block
  u32 guard = kNone;
  u32 op[5] = {kNone, kNone, kNone, kNone, kNone};
  u32 extra = 0;    // further operands: Function::operands from here
  i32 target = -1;  // branch target; index into calls or tables
  u32 line = 0;     // index into Program::lines
  u32 number = 0;   // in the program
  i64 imm = 0;      // address offset
};

struct SourceLine {
  u32 file = 0, line = 0;
  u32 outermost =
      0;  // index into Program::lines: of the call in the kernel's own text; 0: this is the kernel's own
};

// A .param or .reg area that is addressed by name: `bytes` for each lane, lane after lane.
struct Area {
  u32 offset = 0, bytes = 0;
};
struct ParamDeclaration {
  std::string name;
  u32 bytes = 0, align = 1;
};

struct Constant {
  u32 offset = 0;
  u8 width = 4;
  u64 value = 0;
};
struct Special {
  u32 offset = 0;
  u8 index = 0;
};
struct Function;
struct Call {
  Function* callee = nullptr;  // null: a built-in function
  std::string builtin;
  std::vector<Area> arguments, results;  // in the caller's frame
};

// One function's code, decoded for one kernel.
struct Function {
  std::string name;
  std::vector<ParamDeclaration> param_declarations, result_declarations;
  std::vector<Area> params, results;  // in the frame; empty for an entry, whose parameters lie in the block
  std::vector<Insn> code;
  std::vector<u32> operands;
  std::vector<Call> calls;
  std::vector<std::vector<i32>> tables;  // of brx.idx
  std::vector<Constant> constants;
  std::vector<Special> specials;
  std::vector<Area> slots;  // registers and .param areas: what a lane has in a frame; 0 bytes: a predicate
  std::vector<Constant> locals;  // slots with addresses of .local variables: plus the frame's local base
  u32 frame_bytes = 0;
  u32 local_bytes = 0;
  u32 first_count = 0;  // of this function's instructions in the launch's counts
};

// A function or kernel as found in the text.
struct FunctionText {
  std::string name;
  bool entry = false;
  std::vector<ParamDeclaration> params, results;
  std::string_view body;  // empty: declared only
  u32 max_threads = 1024;
};

// Instructions from the target of a branch backwards to the branch, by number.
struct Loop {
  u32 first = 0, last = 0;
};

struct SharedVariable {
  u32 bytes = 0, align = 1;
  bool dynamic = false;
};

struct ModuleText {
  std::string ptx;
  std::string target;
  std::map<std::string, FunctionText, std::less<>> functions;
  std::map<std::string, SharedVariable, std::less<>> shared;
  std::map<std::string, Variable, std::less<>> variables;
  std::map<u32, std::string> files;
};

// A kernel with its own copy of every function that it reaches.
struct Program {
  Function* entry = nullptr;
  std::vector<std::unique_ptr<Function>> functions;
  std::vector<SourceLine> lines;
  std::vector<Loop> loops;  // by `last`
  u32 shared_bytes = 0;
  std::map<std::string, u32, std::less<>> shared_offsets;
  // Slots that hold addresses of dynamic shared memory, which starts behind the static: known at the end.
  std::vector<std::pair<Function*, size_t>> dynamic_constants;
  u32 local_bytes = 0;  // of the entry; 64 KiB when it calls functions
  u32 instructions = 0;
  u64 serial = 0;  // of no other program of the process
  // Base-2 logarithm of a lane's narrowest access: what the race detectors tell apart.
  u32 shared_grain = 4, global_grain = 4;
  mutable u32 block_nanoseconds = UINT32_MAX;  // of the last launch; the executor's
  const ModuleText* text = nullptr;
  std::string where(const Insn& insn) const;  // "file.cu:12", or empty
  std::string trace(const Insn& insn) const;  // "header.h:3, inlined at file.cu:12", or as `where`
};

std::unique_ptr<ModuleText> scan_module(std::string ptx, int device);
std::unique_ptr<Program> decode_kernel(const ModuleText& module, const FunctionText& kernel);

// "u32" → 4; 0: not a type. f16x2 and bf16x2 are 4.
int type_bytes(std::string_view type);

}  // namespace simgpu
