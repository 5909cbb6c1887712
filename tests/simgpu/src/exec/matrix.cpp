// mma and ldmatrix.
#include <array>

#include "exec/access.h"
#include "exec/fragments.h"
#include "exec/real.h"

namespace simgpu {
namespace {

struct Tf32 {
  u32 bits;
};
inline float widen(Tf32 x) {
  return std::bit_cast<float>(x.bits & 0xffffe000u);
}  // the rest of the bits is not read
inline float value_of(Half x) { return simgpu::widen(x); }
inline float value_of(Bfloat x) { return simgpu::widen(x); }
inline float value_of(Tf32 x) { return widen(x); }
inline double value_of(double x) { return x; }
inline i32 value_of(int8_t x) { return x; }
inline i32 value_of(u8 x) { return x; }

// D = A B + C. kPlace: registers and lanes to rows and columns. Registers of A and B are 32 bits wide, of
// f64 64.
template <int M, int N, int K, class A, class B, class C>
struct Mma {
  using Value = decltype(value_of(A{}));
  static constexpr int kRegisterBytes = sizeof(A) == 8 ? 8 : 4;
  static constexpr int kPerRegister = kRegisterBytes / static_cast<int>(sizeof(A));
  static constexpr int kA = M * K / 32 / kPerRegister, kB = K * N / 32 / kPerRegister;
  static constexpr bool kHalfC = std::is_same_v<C, Half>;
  static constexpr int kC = M * N / 32 / (kHalfC ? 2 : 1);

  template <class T, int kCount, class Get>
  static void gather(Warp& w, const u32* registers, Get&& place, Value* dense, int stride) {
    for (int r = 0; r < kCount; ++r) {
      const auto* elements = reinterpret_cast<const T*>(w.file + registers[r]);
      for (int l = 0; l < 32; ++l) {
        for (int e = 0; e < kPerRegister; ++e) {
          const Place p = place(l, r, e);
          dense[p.row * stride + p.col] = value_of(elements[l * kPerRegister + e]);
        }
      }
    }
  }

  static void run(Warp& w, const Insn& i, u32 mask) {
    if (mask != kFullMask)
      report(w, i, std::countr_zero(mask), FaultKind::kInactiveLane,
             "mma needs all 32 lanes; active: " + std::to_string(std::popcount(mask)));
    const u32* operands = &w.frame->function->operands[i.extra];
    const u32 *d = operands, *a = d + kC, *b = a + kA, *c = b + kB;
    alignas(64) Value dense_a[M * K], dense_b[K * N], sums[M * N];
    gather<A, kA>(
        w, a,
        [](int l, int r, int e) {
          return M == 8 ? place_a8(l, r, e, kPerRegister) : place_a(l, r, e, kPerRegister);
        },
        dense_a, K);
    gather<B, kB>(
        w, b, [](int l, int r, int e) { return place_b(l, r, e, kPerRegister); }, dense_b, N);
    each_c([&](int l, int r, int e, Place p) {
      if constexpr (kHalfC)
        sums[p.row * N + p.col] = simgpu::widen(w.lanes<Half>(c[r])[2 * l + e]);
      else
        sums[p.row * N + p.col] = w.lanes<C>(c[r])[l];
    });
    for (int m = 0; m < M; ++m) {
      for (int k = 0; k < K; ++k) {
        const Value x = dense_a[m * K + k];
        for (int n = 0; n < N; ++n) sums[m * N + n] = multiply_add(x, dense_b[k * N + n], sums[m * N + n]);
      }
    }
    each_c([&](int l, int r, int e, Place p) {
      if constexpr (kHalfC)
        w.lanes<Half>(d[r])[2 * l + e] = narrow<Half>(sums[p.row * N + p.col]);
      else
        w.lanes<C>(d[r])[l] = sums[p.row * N + p.col];
    });
    ++counts->counters.mma_count;
    counts->counters.mma_flops += 2 * M * N * K;
  }

 private:
  static float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
  static i32 multiply_add(i32 a, i32 b, i32 c) {
    return static_cast<i32>(static_cast<u32>(a * b) + static_cast<u32>(c));
  }
  template <class F>
  static void each_c(F&& f) {
    for (int r = 0; r < kC; ++r) {
      for (int l = 0; l < 32; ++l) {
        if constexpr (kHalfC) {
          for (int e = 0; e < 2; ++e) f(l, r, e, place_c_f16(l, r, e));
        } else {
          f(l, r, 0, place_c(l, r));
        }
      }
    }
  }
};

struct MmaForm {
  std::string_view shape, d, a, b, c;
  int registers_d, registers_a, registers_b, bytes_d, bytes_a;
  Handler run;
};
template <int M, int N, int K, class A, class B, class C>
constexpr MmaForm form(std::string_view shape, std::string_view a, std::string_view b, std::string_view c) {
  using I = Mma<M, N, K, A, B, C>;
  return {shape, c, a, b, c, I::kC, I::kA, I::kB, sizeof(C) == 8 ? 8 : 4, I::kRegisterBytes, I::run};
}
constexpr MmaForm kForms[] = {
    form<16, 8, 16, Bfloat, Bfloat, float>("m16n8k16", "bf16", "bf16", "f32"),
    form<16, 8, 16, Half, Half, float>("m16n8k16", "f16", "f16", "f32"),
    form<16, 8, 16, Half, Half, Half>("m16n8k16", "f16", "f16", "f16"),
    form<16, 8, 8, Bfloat, Bfloat, float>("m16n8k8", "bf16", "bf16", "f32"),
    form<16, 8, 8, Half, Half, float>("m16n8k8", "f16", "f16", "f32"),
    form<16, 8, 8, Half, Half, Half>("m16n8k8", "f16", "f16", "f16"),
    form<16, 8, 8, Tf32, Tf32, float>("m16n8k8", "tf32", "tf32", "f32"),
    form<16, 8, 4, Tf32, Tf32, float>("m16n8k4", "tf32", "tf32", "f32"),
    form<8, 8, 4, double, double, double>("m8n8k4", "f64", "f64", "f64"),
    form<16, 8, 32, int8_t, int8_t, i32>("m16n8k32", "s8", "s8", "s32"),
    form<16, 8, 32, int8_t, u8, i32>("m16n8k32", "s8", "u8", "s32"),
    form<16, 8, 32, u8, int8_t, i32>("m16n8k32", "u8", "s8", "s32"),
    form<16, 8, 32, u8, u8, i32>("m16n8k32", "u8", "u8", "s32"),
    form<16, 8, 16, int8_t, int8_t, i32>("m16n8k16", "s8", "s8", "s32"),
    form<16, 8, 16, u8, u8, i32>("m16n8k16", "u8", "u8", "s32"),
    form<8, 8, 16, int8_t, int8_t, i32>("m8n8k16", "s8", "s8", "s32"),
    form<8, 8, 16, u8, u8, i32>("m8n8k16", "u8", "u8", "s32"),
};

bool select_mma(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  insn.category = InstructionClass::kMatrixMultiply;
  if (!o.has("row") || !o.has("col") || o.parts.size() < 7 || o.has("satfinite") || args.size() != 4)
    return false;
  const size_t n = o.parts.size();
  for (const MmaForm& f : kForms) {
    if (!o.has(f.shape) || o.parts[n - 4] != f.d || o.parts[n - 3] != f.a || o.parts[n - 2] != f.b
        || o.parts[n - 1] != f.c)
      continue;
    const int wanted[] = {f.registers_d, f.registers_a, f.registers_b, f.registers_d};
    const int bytes[] = {f.bytes_d, f.bytes_a, f.bytes_a, f.bytes_d};
    std::vector<u32> slots;
    for (int k = 0; k < 4; ++k) {
      const std::vector<std::string_view> names = args[k].kind == Argument::Kind::kList
                                                      ? args[k].elements
                                                      : std::vector<std::string_view>{args[k].word};
      if (static_cast<int>(names.size()) != wanted[k]) return false;
      for (const std::string_view name : names) {
        slots.push_back(k == 0 ? d.result(name, static_cast<u32>(bytes[k]))
                               : d.value(name, static_cast<u32>(bytes[k])));
      }
    }
    d.add_operands(insn, slots);
    insn.run = f.run;
    return true;
  }
  return false;
}

template <bool kTransposed>
void load_matrix(Warp& w, const Insn& i, u32 mask) {
  if (mask != kFullMask)
    report(w, i, std::countr_zero(mask), FaultKind::kInactiveLane,
           "ldmatrix needs all 32 lanes; active: " + std::to_string(std::popcount(mask)));
  const u32 lanes = i.count == 4 ? kFullMask : (1u << (8 * i.count)) - 1;
  Access access;
  resolve_access(w, i, lanes, 16, AccessKind::kRead, access);
  const u32* targets = &w.frame->function->operands[i.extra];
  for (u32 m = 0; m < i.count; ++m) {
    u16 matrix[8][8], out[64];
    for (u32 r = 0; r < 8; ++r) std::memcpy(matrix[r], access.at[8 * m + r], 16);
    for (int l = 0; l < 32; ++l) {
      for (int e = 0; e < 2; ++e) {
        const Place p = place_ldmatrix(l, e, kTransposed);
        out[2 * l + e] = matrix[p.row][p.col];
      }
    }
    std::memcpy(w.file + targets[m], out, sizeof out);
  }
}

}  // namespace

bool select_matrix(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  if (o.name() == "mma" && o.parts[1] == "sync") return select_mma(d, insn, o, args);
  if (o.name() != "ldmatrix" || !o.has("m8n8") || o.type() != "b16") return false;
  insn.category = InstructionClass::kMatrixLoad;
  insn.count = o.has("x4") ? 4 : o.has("x2") ? 2 : 1;
  insn.space = o.has("shared") || o.has("shared::cta") ? Space::kShared : Space::kGeneric;
  const Argument& to = args.at(0);
  const std::vector<std::string_view> names =
      to.kind == Argument::Kind::kList ? to.elements : std::vector<std::string_view>{to.word};
  if (names.size() != insn.count) return false;
  std::vector<u32> slots;
  for (const std::string_view name : names) slots.push_back(d.result(name, 4));
  d.address(insn, args.at(1));
  d.add_operands(insn, slots);
  insn.run = o.has("trans") ? load_matrix<true> : load_matrix<false>;
  return true;
}

}  // namespace simgpu
