#include "runtime/profile.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <stdexcept>

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
  std::map<std::string, Region> lines;  // by place
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
unsigned long long ull(u64 n) { return n; }  // for printf

// One line a kernel; resources and occupancy are those of its last launch. Registers "-": the program holds
// only PTX.
void print_kernels() {
  std::fprintf(stderr, "%8s %12s %12s %10s %14s %10s %9s %9s %8s %8s %4s %8s %5s  %s\n", "launches",
               "warp instr", "lane instr", "mma", "global bytes", "sectors", "conflicts", "diverged",
               "barriers", "atomics", "regs", "shared", "occup", "kernel");
  for (const auto& [name, t] : totals()) {
    const Counters& c = t.counters;
    const u32 warps = (t.last.block.x * t.last.block.y * t.last.block.z + 31) / 32;
    const std::string registers = t.last.registers == 0 ? "-" : std::to_string(t.last.registers);
    std::fprintf(
        stderr, "%8llu %12llu %12llu %10llu %14llu %10llu %9llu %9llu %8llu %8llu %4s %8u %4u%%  %s\n",
        ull(t.launches), ull(c.warp_instructions.total()), ull(c.lane_instructions), ull(c.mma_count),
        ull(c.global_load_bytes + c.global_store_bytes), ull(c.global_load_sectors + c.global_store_sectors),
        ull(c.bank_conflicts()), ull(c.divergent_branches), ull(c.barriers), ull(c.atomics),
        registers.c_str(), t.last.shared_bytes, static_cast<u32>(t.last.resident_blocks) * warps * 100 / 64,
        name.c_str());
  }
}
void print_lines() {
  for (const auto& [name, t] : totals()) {
    std::fprintf(stderr, "\n%12s %10s %10s %10s %10s %9s %9s  lines of %s\n", "warp instr", "mma", "loads",
                 "stores", "sectors", "shared", "conflicts", name.c_str());
    for (const auto& [place, r] : t.lines) {
      const Work& w = r.work;
      std::fprintf(stderr, "%12llu %10llu %10llu %10llu %10llu %9llu %9llu  %s\n",
                   ull(r.warp_instructions.total()), ull(w.mma_count), ull(w.global_load_requests),
                   ull(w.global_store_requests), ull(w.global_load_sectors + w.global_store_sectors),
                   ull(w.shared_requests), ull(w.bank_conflicts()),
                   place.empty() ? "(no line)" : place.c_str());
    }
  }
}
// Runs after every handler of atexit and the destructors of static objects: what the program frees there is
// no leak, and what it launches there is in the table.
[[gnu::destructor]] void at_exit() {
  if (settings().profile) print_kernels();
  if (settings().profile && settings().count_lines) print_lines();
  if (!settings().check_leaks) return;
  for (const std::string& leak : leaks()) std::fprintf(stderr, "simgpu: not freed: %s\n", leak.c_str());
}

}  // namespace

void record_launch(const LaunchConfig& config, const Kernel& code, int registers, LaunchCounters counters) {
  const std::string& name = code.display_name();
  if (records().size() == kMostRecords) records().pop_front();
  const u32 shared = code.static_shared_bytes() + config.dynamic_shared_bytes;
  const int threads = static_cast<int>(config.block.x * config.block.y * config.block.z);
  const int resident = resident_blocks(code, registers, threads, config.dynamic_shared_bytes);
  Total& total = totals()[name];
  ++total.launches;
  total.counters += counters.all;
  for (const Region& line : counters.lines) {
    Region& sum = total.lines[line.place];
    sum.warp_instructions += line.warp_instructions;
    sum.work += line.work;
  }
  records().push_back({name, config.grid, config.block, shared, registers, resident, counters.all,
                       std::move(counters.loops), std::move(counters.lines)});
  total.last = records().back();
}
void record_fault(const Fault& fault) { fault_record() = {fault.kind, fault.what()}; }

const Region& main_loop(const LaunchRecord& launch) {
  const Region* best = nullptr;
  for (const Region& loop : launch.loops) {  // a loop comes before the one around it
    if (loop.work.mma_count > (best == nullptr ? 0 : best->work.mma_count)) best = &loop;
  }
  if (best == nullptr) throw std::logic_error("no loop of " + launch.kernel + " holds mma instructions");
  return *best;
}
const std::deque<LaunchRecord>& launches() { return records(); }
void clear_launches() {
  Context::get().wait_all();  // what streams still hold belongs to the time before
  records().clear();
}
std::optional<FaultRecord> last_fault() { return fault_record(); }
void clear_fault() {
  fault_record().reset();
  Context::get().sticky = cudaSuccess;
  take_last_error(true);
}
std::vector<std::string> leaks() {
  std::vector<std::string> list;
  for (const Allocation& a : memory::live_allocations()) {
    if (a.kind != MemoryKind::kVariable && !a.freeing)
      list.push_back(a.label + ", " + std::to_string(a.size) + " bytes");
  }
  return list;
}

}  // namespace simgpu
