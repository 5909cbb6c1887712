#pragma once
// Turns one function's text into instructions. The select_* functions, one a group of opcodes, choose an
// instruction's handler and resolve its operands through this class.
#include <array>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ptx/program.h"
#include "ptx/scan.h"

namespace simgpu {

struct Opcode {
  std::string_view text;
  std::vector<std::string_view>
      parts;  // "mma.sp::ordered_metadata" has the parts "mma", "sp::ordered_metadata"
  std::string_view name() const { return parts.front(); }
  std::string_view type() const { return parts.back(); }
  bool has(std::string_view modifier) const;
  std::string_view part(size_t k) const { return asked |= u64{1} << k, parts.at(k); }
  // A modifier that nothing has asked for and that changes the result; "": there is none.
  std::string_view unknown() const;

  mutable u64 asked = 0;  // parts by which the handler was chosen, a bit each
};

struct Argument {
  enum class Kind : u8 { kWord, kList, kAddress, kPair, kGroup } kind = Kind::kWord;
  std::string_view word;                   // register, number or name; an address's base
  std::vector<std::string_view> elements;  // {a, b}, p|q and (a, b)
  i64 offset = 0;                          // of an address
  bool negated = false;                    // !p
};

class Decoder {
 public:
  Decoder(const ModuleText& module, Program& program, const FunctionText& text, Function& function);
  void run();

  // The slot of a register, number, special register or variable's address, as a value of `width` bytes.
  u32 value(std::string_view word, u32 width);
  // Of a variable or a kernel's parameter, in its space; none where the name is another's.
  std::optional<u64> variable_address(std::string_view name);
  u32 value(const Argument& argument, u32 width) { return value(argument.word, width); }
  // A register to write to; "_" is a slot that nobody reads.
  u32 result(std::string_view word, u32 width);
  u32 result(const Argument& argument, u32 width) { return result(argument.word, width); }
  u32 predicate(const Argument& argument);  // a negated one is negated into a slot of its own first
  u32 predicate_or_constant(const Argument& argument);  // also 0 and 1
  u32 width_of(std::string_view word) const;  // bytes of a register (a predicate: 0), kNone for anything else
  void add_operands(Insn& insn, std::span<const u32> operands);
  // Base and offset of an address, state space included.
  void address(Insn& insn, const Argument& argument);
  void emit(const Insn& insn) { function_.code.push_back(insn); }
  u32 carry() { return carry_ == kNone ? carry_ = allocate(0) : carry_; }  // the condition code register
  const ModuleText& module() const { return module_; }

 private:
  struct Register {
    u32 offset = 0, width = 0;
  };

  void statement(std::string_view first);
  void declare(std::string_view space);
  void location();
  void instruction(std::string_view first);
  void branch(Insn& insn, const Opcode& opcode, const std::vector<Argument>& arguments);
  void call(Insn& insn);
  std::vector<Argument> arguments();
  Argument argument();
  u32 allocate(u32 width);
  u32 allocate_bytes(u32 bytes, u32 align);
  u32 constant(u64 value, u32 width);
  const Register* find(std::string_view name) const;
  void define(std::string_view name, u32 width);
  void resolve_labels();
  [[noreturn]] void fail(const std::string& problem) const;

  const ModuleText& module_;
  Program& program_;
  const FunctionText& text_;
  Function& function_;
  Scanner s_;
  std::vector<std::unordered_map<std::string_view, Register>> scopes_;
  std::deque<std::string> names_;                     // that the views below refer to
  std::unordered_map<std::string_view, Area> areas_;  // .param areas in the frame
  std::unordered_map<std::string_view, u64> locals_;  // .local variables: offset from the frame's local base
  std::unordered_map<std::string_view, i32> labels_;
  std::unordered_map<std::string_view, i32> tables_;
  std::vector<std::vector<std::string_view>> table_labels_;
  std::vector<std::pair<size_t, std::string_view>> branches_;
  std::map<std::array<u32, 3>, u32> places_;           // file, line and column: the newest of Program::lines
  std::map<std::pair<u64, u32>, u32> constant_slots_;  // by value and width
  std::unordered_map<u8, u32> special_slots_;
  std::string_view opcode_;
  u32 next_ = 0;
  u32 carry_ = kNone;
  u32 line_ = 0;
};

// false: not of this group, or a combination that does not exist.
bool select_integer(Decoder& d, Insn& insn, const Opcode& opcode, const std::vector<Argument>& args);
bool select_float(Decoder& d, Insn& insn, const Opcode& opcode, const std::vector<Argument>& args);
bool select_half(Decoder& d, Insn& insn, const Opcode& opcode, const std::vector<Argument>& args);
bool select_move(Decoder& d, Insn& insn, const Opcode& opcode, const std::vector<Argument>& args);
bool select_compare(Decoder& d, Insn& insn, const Opcode& opcode, const std::vector<Argument>& args);
bool select_convert(Decoder& d, Insn& insn, const Opcode& opcode, const std::vector<Argument>& args);
bool select_memory(Decoder& d, Insn& insn, const Opcode& opcode, const std::vector<Argument>& args);
bool select_atomic(Decoder& d, Insn& insn, const Opcode& opcode, const std::vector<Argument>& args);
bool select_collective(Decoder& d, Insn& insn, const Opcode& opcode, const std::vector<Argument>& args);
bool select_matrix(Decoder& d, Insn& insn, const Opcode& opcode, const std::vector<Argument>& args);

Function* function_of(const ModuleText& module, Program& program, const FunctionText& text);
bool is_builtin(std::string_view name);
void negate_predicate(Warp& warp, const Insn& insn, u32 mask);

// Insn::mode of a Flow::kBlockBarrier; op: id, threads (or none), result, predicate.
enum BarrierMode : u8 { kBarrierSync, kBarrierArrive, kBarrierPopcount, kBarrierAnd, kBarrierOr };

// Special registers that have one value a lane for a whole block.
inline constexpr std::string_view kSpecialNames[] = {
    "%tid.x",           "%tid.y",       "%tid.z",       "%ntid.x",
    "%ntid.y",          "%ntid.z",      "%ctaid.x",     "%ctaid.y",
    "%ctaid.z",         "%nctaid.x",    "%nctaid.y",    "%nctaid.z",
    "%laneid",          "%warpid",      "%nwarpid",     "%smid",
    "%nsmid",           "%gridid",      "%lanemask_eq", "%lanemask_le",
    "%lanemask_lt",     "%lanemask_ge", "%lanemask_gt", "%dynamic_smem_size",
    "%total_smem_size", "%envreg1",     "%envreg2",     "%reserved_smem_offset_1"};

enum class SpecialRegister : u8 {  // the same, in this order
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneId,
  kWarpId,
  kNwarpId,
  kSmId,
  kNsmId,
  kGridId,
  kLanemaskEq,
  kLanemaskLe,
  kLanemaskLt,
  kLanemaskGe,
  kLanemaskGt,
  kDynamicSharedBytes,
  kTotalSharedBytes,
  kGridWorkspaceHigh,
  kGridWorkspaceLow,
  kReservedSharedOffset
};

// Generic addresses outside global memory: shared, local and parameter windows.
constexpr u64 kSharedWindow = u64{1} << 60;
constexpr u64 kLocalWindow = u64{2} << 60;
constexpr u64 kParamWindow = u64{3} << 60;
constexpr u64 kWindowMask = u64{15} << 60;
constexpr u32 kStackBytes = 64 * 1024;  // of local memory a thread, where functions are called

}  // namespace simgpu
