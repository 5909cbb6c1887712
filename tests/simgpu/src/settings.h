#pragma once
// Settings of the process, read once from the environment and changeable through simgpu/simgpu.h.
#include "types.h"

namespace simgpu {

struct Settings {
  int devices = 1;                   // ERGON_SIMGPU_DEVICES
  u64 memory_bytes = u64{40} << 30;  // of each device: ERGON_SIMGPU_MEMORY, also as 512M or 2G
  u64 order_seed = 0;  // ERGON_SIMGPU_ORDER: seed of an adversarial, legal order of streams, blocks and warps
  // ERGON_SIMGPU_CHECK names the checkers wanted: memory,initialised,shared-races,global-races,leaks; 0 is
  // none.
  bool check_memory = true;
  bool check_initialised = true;
  bool check_shared_races = true;
  bool check_global_races = true;
  bool check_leaks = true;
  bool profile = false;      // ERGON_SIMGPU_PROFILE=1: a table of the kernels at exit
  bool count_lines = false;  // ERGON_SIMGPU_PROFILE=lines: of their source lines too
  double loop_seconds = 30;  // of processor time, in which blocks may loop and change nothing but registers
  int threads = 0;           // ERGON_SIMGPU_THREADS; 0: one for each core
};
Settings& settings();

}  // namespace simgpu
