// Modifiers of opcodes, and the places of instructions in the source.
#include "ptx/program.h"

#include <algorithm>

#include "ptx/decoder.h"

namespace simgpu {

bool Opcode::has(std::string_view modifier) const {
  const auto found = std::find(parts.begin() + 1, parts.end(), modifier);
  if (found != parts.end()) asked |= u64{1} << (found - parts.begin());
  return found != parts.end();
}
std::string_view Opcode::unknown() const {
  // The default rounding, exactness and half of the product, what all accesses here are, and hints.
  constexpr std::string_view kNeutral[] = {
      "rn", "approx", "full",    "noftz", "lo",      "wrap",    "sync",    "aligned", "cta",  "gpu", "sys",
      "gl", "weak",   "relaxed", "sc",    "acquire", "release", "acq_rel", "nc",      "ca",   "cg",  "cs",
      "lu", "cv",     "wb",      "wt",    "v2",      "v4",      "global",  "local",   "const"};
  for (size_t k = 1; k < parts.size(); ++k) {
    const std::string_view p = parts[k];
    if ((asked >> k & 1) == 0 && type_bytes(p) == 0 && p != "pred" && !p.starts_with("L1")
        && !p.starts_with("L2")
        && std::find(std::begin(kNeutral), std::end(kNeutral), p) == std::end(kNeutral))
      return p;
  }
  return {};
}

static std::string place(const Program& program, const SourceLine& line) {
  const auto file = program.text->files.find(line.file);
  return file == program.text->files.end() ? std::string() : file->second + ":" + std::to_string(line.line);
}
std::string Program::where(const Insn& insn) const { return place(*this, lines[insn.line]); }
std::string Program::trace(const Insn& insn) const {
  const u32 outermost = lines[insn.line].outermost;
  return where(insn) + (outermost == 0 ? "" : ", inlined at " + place(*this, lines[outermost]));
}

}  // namespace simgpu
