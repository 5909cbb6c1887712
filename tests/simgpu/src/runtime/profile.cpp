#include "runtime/profile.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include "memory.h"
#include "runtime/context.h"
#include "simgpu/simgpu.h"

namespace simgpu {
namespace {

constexpr size_t kMostRecords = 4096;
std::deque<LaunchRecord>& records() {
  static auto* const list = new std::deque<LaunchRecord>;
  return *list;
}
struct Total {
  u64 launches = 0;
  Counters counters;
  LaunchRecord last;
};
std::map<std::string, Total>& totals() {
  static auto* const table = new std::map<std::string, Total>;
  return *table;
}
std::optional<FaultRecord>& fault_record() {
  static std::optional<FaultRecord> fault;
  return fault;
}
// One line a kernel; resources and occupancy are those of its last launch. Registers "-": the program holds
// only PTX.
void print_profile() {
  std::fprintf(stderr, "%-36s %8s %12s %12s %10s %14s %10s %9s %9s %8s %8s %4s %8s %5s\n", "kernel",
               "launches", "warp instr", "lane instr", "mma", "global bytes", "sectors", "conflicts",
               "diverged", "barriers", "atomics", "regs", "shared", "occup");
  for (const auto& [name, t] : totals()) {
    const Counters& c = t.counters;
    u64 instructions = 0;
    for (const u64 n : c.warp_instructions) instructions += n;
    const auto ull = [](u64 n) { return static_cast<unsigned long long>(n); };
    const u32 warps = (t.last.block.x * t.last.block.y * t.last.block.z + 31) / 32;
    const std::string registers = t.last.registers == 0 ? "-" : std::to_string(t.last.registers);
    std::fprintf(
        stderr, "%-36.36s %8llu %12llu %12llu %10llu %14llu %10llu %9llu %9llu %8llu %8llu %4s %8u %4u%%\n",
        name.c_str(), ull(t.launches), ull(instructions), ull(c.lane_instructions), ull(c.mma_count),
        ull(c.global_load_bytes + c.global_store_bytes), ull(c.global_load_sectors + c.global_store_sectors),
        ull(c.shared_wavefronts - c.shared_ideal_wavefronts), ull(c.divergent_branches), ull(c.barriers),
        ull(c.atomics), registers.c_str(), t.last.shared_bytes,
        static_cast<u32>(t.last.resident_blocks) * warps * 100 / 64);
  }
}
// Runs after every handler of atexit and the destructors of static objects: what the program frees there is
// no leak, and what it launches there is in the table.
[[gnu::destructor]] void at_exit() {
  if (settings().profile) print_profile();
  if (!settings().check_leaks) return;
  for (const std::string& leak : leaks()) std::fprintf(stderr, "simgpu: not freed: %s\n", leak.c_str());
}

}  // namespace

void record_launch(const LaunchConfig& config, const Kernel& code, int registers, const Counters& counters) {
  const std::string& name = code.display_name();
  if (records().size() == kMostRecords) records().pop_front();
  const u32 shared = code.static_shared_bytes() + config.dynamic_shared_bytes;
  const int threads = static_cast<int>(config.block.x * config.block.y * config.block.z);
  const int resident = resident_blocks(code, registers, threads, config.dynamic_shared_bytes);
  records().push_back({name, config.grid, config.block, shared, registers, resident, counters});
  Total& total = totals()[name];
  ++total.launches;
  total.counters += counters;
  total.last = records().back();
}
void record_fault(const Fault& fault) { fault_record() = {fault.kind, fault.what()}; }

const std::deque<LaunchRecord>& launches() { return records(); }
void clear_launches() { records().clear(); }
std::optional<FaultRecord> last_fault() { return fault_record(); }
void clear_fault() {
  fault_record().reset();
  Context::get().sticky = cudaSuccess;
  take_last_error(true);
}
std::vector<std::string> leaks() {
  std::vector<std::string> list;
  for (const Allocation& a : memory::live_allocations()) {
    if (a.kind != MemoryKind::kVariable) list.push_back(a.label + ", " + std::to_string(a.size) + " bytes");
  }
  return list;
}

}  // namespace simgpu
