// Runs the blocks of one launch over host threads.
#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <list>
#include <mutex>
#include <numeric>
#include <thread>

#include <time.h>

#include "exec/crew.h"
#include "exec/executor.h"
#include "exec/summary.h"
#include "settings.h"

namespace simgpu {

thread_local LaunchCounts* counts = nullptr;

namespace {

constexpr u64 kMostResident = u64{kMultiprocessors} * 16;  // blocks of a launch that may be alive at once
constexpr u64 kDeadlockNanoseconds = 500'000'000;  // for which every host thread has found nothing but spins
constexpr size_t kRunnersKept = 64;
constexpr u64 kShortNanoseconds = 30'000;  // of work: waking another thread for it would take as long

u64 now_ns() {
  return static_cast<u64>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                              std::chrono::steady_clock::now().time_since_epoch())
                              .count());
}

// Of the processor, by the whole process: it stands while the process does.
u64 processor_ns() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<u64>(t.tv_sec) * 1'000'000'000 + static_cast<u64>(t.tv_nsec);
}

// Runners that wait for work, the last used first; never destroyed, so that static destructors may launch.
using Runner = std::unique_ptr<BlockRunner>;
struct Spares {
  std::mutex mutex;
  std::list<Runner> runners;
};
Spares& spares() {
  static auto* const s = new Spares;
  return *s;
}
Runner take_runner(const Launch& launch) {
  Spares& s = spares();
  {
    const std::lock_guard lock(s.mutex);
    const auto found =
        std::find_if(s.runners.begin(), s.runners.end(), [&](const Runner& r) { return r->fits(launch); });
    if (found != s.runners.end()) {
      Runner runner = std::move(*found);
      s.runners.erase(found);
      return runner;
    }
  }
  return std::make_unique<BlockRunner>(launch);
}
void put_back(Runner runner) {
  Spares& s = spares();
  const std::lock_guard lock(s.mutex);
  s.runners.push_front(std::move(runner));
  if (s.runners.size() > kRunnersKept) s.runners.pop_back();
}

class Grid {
 public:
  explicit Grid(Launch& launch)
      : launch_(launch), blocks_(u64{launch.config.grid.x} * launch.config.grid.y * launch.config.grid.z) {}

  LaunchCounters run() {
    static const int cores = static_cast<int>(std::thread::hardware_concurrency());  // asks the system: slow
    const int threads = settings().threads > 0 ? settings().threads : cores;
    helpers_ = static_cast<int>(std::min<u64>(static_cast<u64>(std::max(threads, 1)), blocks_)) - 1;
    idle_since_ = std::vector<std::atomic<u64>>(static_cast<size_t>(helpers_) + 1);
    for (auto& since : idle_since_) since = kAway;
    const std::function<void()> job = [this] { work(false); };
    job_ = &job;
    start_ = now_ns();
    // What a block of this kernel took the last time tells whether help is worth waking.
    if (blocks_ * launch_.program->block_nanoseconds >= kShortNanoseconds) summon();
    work(true);
    if (summoned_) Crew::get().dismiss();
    launch_.program->block_nanoseconds =
        static_cast<u32>(std::min<u64>((now_ns() - start_) / blocks_ + 1, UINT32_MAX));
    if (failure_) std::rethrow_exception(failure_);
    const Dim3 d = launch_.config.block;
    total_.counters.blocks = blocks_;
    total_.counters.warps = blocks_ * ((u64{d.x} * d.y * d.z + 31) / 32);
    return summarise(*launch_.program, total_);
  }

 private:
  void summon() {
    summoned_ = true;
    if (helpers_ > 0) Crew::get().summon(helpers_, *job_);
  }

  // One host thread: a block at a time; one that only spins is put back and another begun or continued.
  void work(bool first_thread) {
    LaunchCounts mine;
    mine.executed.resize(launch_.program->instructions);
    mine.work.resize(launch_.program->instructions);
    counts = &mine;
    std::deque<Runner> resident;
    u64 spinning = 0, idle_turns = 0, looping_since = 0;
    bool computes = false;  // some loop changes registers
    std::atomic<u64>& idle_since = idle_since_[threads_++];
    idle_since = kWorking;
    try {
      while (!stop_) {
        const bool all_spin = spinning >= resident.size();
        u64 linear;
        if ((resident.empty() || (all_spin && resident.size() < kMostResident))
            && (linear = next_.fetch_add(1)) < blocks_) {
          Runner runner = take_runner(launch_);
          runner->start(launch_, order(linear));
          resident.push_front(std::move(runner));
          spinning = 0;
        }
        if (resident.empty()) break;
        BlockRunner& current = *resident.front();
        current.turn();
        if (!current.spins()) {
          spinning = 0;
          if (idle_since != kWorking) idle_since = kWorking;
          if (current.finished()) {
            put_back(std::move(resident.front()));
            resident.pop_front();
          }
        } else {
          resident.push_back(std::move(resident.front()));
          resident.pop_front();
          ++spinning;
          computes |= !current.waits();
          if (++idle_turns % 64 == 0 && spinning >= resident.size()) {
            const u64 now = processor_ns();
            if (idle_since == kWorking) idle_since = looping_since = now;
            if (computes && now - looping_since < static_cast<u64>(settings().loop_seconds * 1e9))
              idle_since = now;
            computes = false;
            if (all_idle()) resident.front()->report_deadlock();
            std::this_thread::yield();
          }
        }
        if (first_thread && !summoned_ && now_ns() - start_ > kShortNanoseconds) summon();
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      stop_ = true;
    }
    idle_since = kAway;
    counts = nullptr;
    const std::lock_guard lock(mutex_);
    add(std::move(mine));
  }

  void add(LaunchCounts mine) {
    if (total_.executed.empty()) {
      total_ = std::move(mine);
      return;
    }
    for (size_t k = 0; k < mine.executed.size(); ++k) total_.executed[k] += mine.executed[k];
    for (size_t k = 0; k < mine.work.size(); ++k) total_.work[k] += mine.work[k];
    total_.counters += mine.counters;
  }

  bool all_idle() const {
    const u64 now = processor_ns(), long_enough = kDeadlockNanoseconds * idle_since_.size();
    return std::all_of(idle_since_.begin(), idle_since_.end(), [&](const std::atomic<u64>& since) {
      return since == kAway || (since != kWorking && now - since > long_enough);
    });
  }

  // Blocks in order, or in an order of the seed's: multiplication by a number without a common factor.
  u64 order(u64 i) const {
    if (launch_.config.order_seed == 0) return i;
    u64 factor = launch_.config.order_seed % blocks_ | 1;
    while (std::gcd(factor, blocks_) != 1) ++factor;
    return (i % blocks_ * (factor % blocks_) + launch_.config.order_seed) % blocks_;
  }

  Launch& launch_;
  const u64 blocks_;
  int helpers_ = 0;
  bool summoned_ = false;
  u64 start_ = 0;
  const std::function<void()>* job_ = nullptr;
  // Of each host thread: the time since when it has found nothing but spins, or one of these.
  static constexpr u64 kWorking = 0, kAway = ~u64{0};
  std::vector<std::atomic<u64>> idle_since_;
  std::atomic<size_t> threads_{0};
  std::atomic<u64> next_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::exception_ptr failure_;
  LaunchCounts total_;
};

}  // namespace

LaunchCounters execute(Launch& launch) {
  static auto* const one_at_a_time = new std::mutex;
  const std::lock_guard lock(*one_at_a_time);
  return Grid(launch).run();
}

}  // namespace simgpu
