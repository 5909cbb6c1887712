#include "exec/summary.h"

#include <map>

#include "settings.h"

namespace simgpu {
namespace {

template <class T>
void add_all(T& to, const T& from) {  // of u64 only
  static_assert(sizeof(T) % sizeof(u64) == 0);
  auto* sums = reinterpret_cast<u64*>(&to);
  const auto* values = reinterpret_cast<const u64*>(&from);
  for (size_t i = 0; i < sizeof(T) / sizeof(u64); ++i) sums[i] += values[i];
}

// Every instruction of the program, in the order of its numbers.
template <class F>
void each_instruction(const Program& program, F&& f) {
  for (const auto& function : program.functions) {
    for (const Insn& insn : function->code) f(insn);
  }
}

}  // namespace

Work& Work::operator+=(const Work& other) { return add_all(*this, other), *this; }
Counters& Counters::operator+=(const Counters& other) { return add_all(*this, other), *this; }
Instructions& Instructions::operator+=(const Instructions& other) { return add_all(*this, other), *this; }
u64 Instructions::total() const {
  u64 sum = 0;
  for (const u64 n : by_class) sum += n;
  return sum;
}

LaunchCounters summarise(const Program& program, const LaunchCounts& counted) {
  LaunchCounters result;
  result.all = counted.counters;
  result.loops.resize(program.loops.size());
  std::map<std::pair<u32, u32>, Region> lines;
  each_instruction(program, [&](const Insn& insn) {
    const u64 executed = counted.executed[insn.number];
    if (executed == 0) return;
    const auto add = [&](Instructions& instructions, Work& work) {
      instructions.by_class[static_cast<int>(insn.category)] += executed;
      work += counted.work[insn.number];
    };
    add(result.all.warp_instructions, result.all);
    for (size_t k = 0; k < program.loops.size(); ++k) {
      const Loop& loop = program.loops[k];
      Region& region = result.loops[k];
      if (insn.number >= loop.first && insn.number <= loop.last) add(region.warp_instructions, region.work);
      if (insn.number != loop.last) continue;
      region.iterations = executed;
      region.place = program.where(insn);
    }
    if (!settings().count_lines) return;
    const SourceLine& line = program.lines[insn.line];
    Region& region = lines[{line.file, line.line}];
    if (region.place.empty()) region.place = program.where(insn);
    add(region.warp_instructions, region.work);
  });
  for (auto& [line, region] : lines) result.lines.push_back(std::move(region));
  return result;
}

}  // namespace simgpu
