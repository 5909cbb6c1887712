#pragma once
// Names that every part of the simulated GPU shares.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace simgpu {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;

constexpr int kWarpSize = 32;
constexpr u32 kFullMask = 0xffffffffu;

struct Dim3 {
  u32 x = 1, y = 1, z = 1;
};

// PTX that cannot be read or executed: names the kernel, the instruction, the .cu line where known and the
// remedy.
struct PtxError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What a checker found, or a trap or failed device assertion: ends the launch.
enum class FaultKind : u8 {
  kOutOfBounds,
  kMisaligned,
  kUseAfterFree,
  kNoPeerAccess,
  kUninitialisedRead,
  kSharedRace,
  kGlobalRace,
  kBarrierDivergence,
  kMissingAsyncWait,
  kInactiveLane,
  kInvalidMetadata,
  kAssert,
  kTrap,
  kDeadlock,
};
struct Fault : std::runtime_error {
  Fault(FaultKind fault_kind, const std::string& text) : std::runtime_error(text), kind(fault_kind) {}
  FaultKind kind;
};

}  // namespace simgpu
