// Instructions in which lanes of a warp meet: shfl, vote, redux, match, barriers, mma.
#include "warp.h"

namespace simgpu {
namespace {

void shuffle(Warp& w, const Insn& i, u32 mask) {  // d, p, a, b, c, membermask
  u32* d = lanes<u32>(w, i.op[0]);
  u32 a[32], p = 0;
  memcpy(a, lanes<u32>(w, i.op[2]), sizeof a);
  for (u32 m = mask; m; m &= m - 1) {
    const int l = std::countr_zero(m);
    const int b = static_cast<int>(lanes<u32>(w, i.op[3])[l] & 31), c = static_cast<int>(lanes<u32>(w, i.op[4])[l]);
    const int clamp = c & 31, segment = c >> 8 & 31;
    const int low = l & segment, high = low | (clamp & ~segment);
    int j = i.mode == 0 ? l - b : i.mode == 1 ? l + b : i.mode == 2 ? l ^ b : low | (b & ~segment);
    const bool inside = i.mode == 0 ? j >= high : j <= high;
    if (!inside) j = l;
    p |= u32(inside) << l;
    if (!(mask >> j & 1)) report(w, i, l, "shfl reads lane " + std::to_string(j) + ", which is inactive");
    d[l] = a[j];
  }
  u32& out = predicate(w, i.op[1]);
  out = (out & ~mask) | p;
}

void vote(Warp& w, const Insn& i, u32 mask) {  // mode 0 ballot, 1 any, 2 all, 3 uni
  const u32 p = i.op[1].width == 0 ? predicate(w, i.op[1]) & mask : (lanes<u32>(w, i.op[1])[0] ? mask : 0);
  if (i.mode == 0) {
    for (u32 m = mask; m; m &= m - 1) lanes<u32>(w, i.op[0])[std::countr_zero(m)] = p;
    return;
  }
  const bool r = i.mode == 1 ? p != 0 : i.mode == 2 ? p == mask : p == 0 || p == mask;
  u32& d = predicate(w, i.op[0]);
  d = (d & ~mask) | (r ? mask : 0);
}

void active_mask(Warp& w, const Insn& i, u32 mask) {
  for (u32 m = mask; m; m &= m - 1) lanes<u32>(w, i.op[0])[std::countr_zero(m)] = mask;
}

template <class T>
void reduce(Warp& w, const Insn& i, u32 mask) {
  const T* a = lanes<T>(w, i.op[1]);
  T r = a[std::countr_zero(mask)];
  for (u32 m = mask & (mask - 1); m; m &= m - 1) {
    const T v = a[std::countr_zero(m)];
    r = i.mode == 0 ? T(u32(r) + u32(v)) : i.mode == 1 ? std::min(r, v) : i.mode == 2 ? std::max(r, v) : i.mode == 3 ? T(r & v) : i.mode == 4 ? T(r | v) : T(r ^ v);
  }
  for (u32 m = mask; m; m &= m - 1) lanes<T>(w, i.op[0])[std::countr_zero(m)] = r;
}

void match_any(Warp& w, const Insn& i, u32 mask) {
  for (u32 m = mask; m; m &= m - 1) {
    const int l = std::countr_zero(m);
    u32 r = 0;
    for (u32 n = mask; n; n &= n - 1) r |= u32(read_any(w, i.op[1], std::countr_zero(n)) == read_any(w, i.op[1], l)) << std::countr_zero(n);
    lanes<u32>(w, i.op[0])[l] = r;
  }
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": groupID g = lane/4, t = lane%4.
// A: row = g + 8*(register odd), col = 2t + 8*(register >= 2) + half; B: row = 2t + 8*register + half, col = g;
// C and D: row = g + 8*(i >= 2), col = 2t + (i & 1).
struct Cell { u8 row, col; };
constexpr Cell a_cell(int lane, int reg, int half) { return {u8(lane / 4 + 8 * (reg & 1)), u8(2 * (lane % 4) + 8 * (reg >> 1) + half)}; }
constexpr Cell b_cell(int lane, int reg, int half) { return {u8(2 * (lane % 4) + 8 * reg + half), u8(lane / 4)}; }
constexpr Cell c_cell(int lane, int reg) { return {u8(lane / 4 + 8 * (reg >> 1)), u8(2 * (lane % 4) + (reg & 1))}; }

template <bool Bf16>
float widen(u32 bits) {
  if constexpr (Bf16) return std::bit_cast<float>(bits << 16);
  else return static_cast<float>(std::bit_cast<_Float16>(static_cast<u16>(bits)));
}

template <bool Bf16>
void mma_16x8x16(Warp& w, const Insn& i, u32 mask) {
  if (mask != kFullMask) report(w, i, std::countr_zero(mask), "mma needs all 32 lanes");
  alignas(64) float a[16][16], b[16][8], c[16][8];
  for (int r = 0; r < 4; ++r) {
    const u32* v = lanes<u32>(w, i.op[4 + r]);
    for (int l = 0; l < 32; ++l) {
      for (int h = 0; h < 2; ++h) a[a_cell(l, r, h).row][a_cell(l, r, h).col] = widen<Bf16>(v[l] >> (16 * h) & 0xffff);
    }
  }
  for (int r = 0; r < 2; ++r) {
    const u32* v = lanes<u32>(w, i.op[8 + r]);
    for (int l = 0; l < 32; ++l) {
      for (int h = 0; h < 2; ++h) b[b_cell(l, r, h).row][b_cell(l, r, h).col] = widen<Bf16>(v[l] >> (16 * h) & 0xffff);
    }
  }
  for (int r = 0; r < 4; ++r) {
    const float* v = lanes<float>(w, i.op[10 + r]);
    for (int l = 0; l < 32; ++l) c[c_cell(l, r).row][c_cell(l, r).col] = v[l];
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int r = 0; r < 4; ++r) {
    float* v = lanes<float>(w, i.op[r]);
    for (int l = 0; l < 32; ++l) v[l] = c[c_cell(l, r).row][c_cell(l, r).col];
  }
}

void trap(Warp& w, const Insn& i, u32 mask) { report(w, i, std::countr_zero(mask), "trap"); }

}  // namespace

// For Flow::kWarpSync the last operand is the member mask, which the executor waits for.
bool select_warp(Insn& insn, const Opcode& o, size_t n) {
  const std::string_view op = o.part[0];
  if (op == "trap") return insn.run = trap;
  if (op == "activemask") return insn.run = active_mask;
  if (op == "bar" || op == "barrier") {
    if (o.has("warp")) return insn.flow = Flow::kWarpBarrier, true;
    insn.flow = Flow::kBlockBarrier;
    return o.has("sync") && n >= 1 && n <= 2;
  }
  if (op == "mma") {
    const std::string_view t = o.type();
    if (!o.has("m16n8k16") || !o.has("row") || !o.has("col") || o.has("sp") || t != "f32" || n != 14) return false;
    if (o.has("bf16")) insn.run = mma_16x8x16<true>;
    else if (o.has("f16")) insn.run = mma_16x8x16<false>;
    return insn.run;
  }
  insn.flow = Flow::kWarpSync;
  if (op == "shfl" && o.has("sync")) {
    insn.mode = o.has("up") ? 0 : o.has("down") ? 1 : o.has("bfly") ? 2 : 3;
    insn.count = 6;
    return insn.run = shuffle;
  }
  if (op == "vote" && o.has("sync")) {
    insn.mode = o.has("ballot") ? 0 : o.has("any") ? 1 : o.has("all") ? 2 : 3;
    return insn.run = vote;
  }
  if (op == "match" && o.has("any")) return insn.run = match_any;
  if (op == "redux" && o.has("sync")) {
    constexpr std::string_view names[] = {"add", "min", "max", "and", "or", "xor"};
    for (int k = 0; k < 6; ++k) {
      if (o.has(names[k])) insn.mode = static_cast<u8>(k);
    }
    return insn.run = o.type() == "s32" ? reduce<int32_t> : reduce<u32>;
  }
  insn.flow = Flow::kNormal;
  return false;
}

}  // namespace simgpu
