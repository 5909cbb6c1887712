// mma, mma.sp and ldmatrix.
#include <algorithm>
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

// D = A B + C, for mma.sp with A (M x K) stored as its K / 2 non-zero columns. Registers of A and B are 32
// bits wide, of f64 64.
template <int M, int K, class A, class B, class C, bool kSparse>
struct Mma {
  static constexpr int N = 8;
  static constexpr int kStored = kSparse ? K / 2 : K;  // columns of A in the registers
  using Value = decltype(value_of(A{}));
  using Sum = std::conditional_t<std::is_same_v<Value, i32>, i64, Value>;
  static constexpr int kRegisterBytes = sizeof(A) == 8 ? 8 : 4;
  static constexpr int kPerRegister = kRegisterBytes / static_cast<int>(sizeof(A));
  static constexpr int kColumns = 4 * kPerRegister;  // of a tile
  static constexpr int kA = M * kStored / 32 / kPerRegister, kB = K * N / 32 / kPerRegister;
  static constexpr bool kHalfC = std::is_same_v<C, Half>;
  static constexpr int kC = M * N / 32 / (kHalfC ? 2 : 1);
  // Of the metadata of a row.
  static constexpr bool kBytes = sizeof(A) == 1;
  static constexpr int kIndexBits = sizeof(A) == 4 ? 4 : 2;
  static constexpr int kParts = kIndexBits * kStored / (kBytes ? 32 : 16);
  static constexpr int kSelectors = metadata_selectors(kParts, kBytes);

  static void run(Warp& w, const Insn& i, u32 mask) {
    if (mask != kFullMask)
      report(w, i, std::countr_zero(mask), FaultKind::kInactiveLane,
             "mma needs all 32 lanes; active: " + std::to_string(std::popcount(mask)));
    const u32* operands = &w.frame->function->operands[i.extra];
    const u32 *d = operands, *a = d + kC, *b = a + kA, *c = b + kB;
    alignas(64) Value stored[M * kStored], dense[kSparse ? M * K : 1], right[K * N];
    alignas(64) Sum sums[M * N];
    for (int r = 0; r < kA; ++r) {
      const auto* tile = w.lanes<A>(a[r]);
      const Place first = tile_a(r, kPerRegister, M);
      for (int m = 0; m < 8; ++m) {
        for (int k = 0; k < kColumns; ++k)
          stored[(first.row + m) * kStored + first.col + k] = value_of(tile[m * kColumns + k]);
      }
    }
    for (int r = 0; r < kB; ++r) {
      const auto* tile = w.lanes<B>(b[r]);
      Value wide[8 * kColumns];
      for (int k = 0; k < 8 * kColumns; ++k) wide[k] = value_of(tile[k]);
      for (int k = 0; k < kColumns; ++k) {
        for (int n = 0; n < N; ++n) right[(tile_b(r, kPerRegister) + k) * N + n] = wide[n * kColumns + k];
      }
    }
    if constexpr (kHalfC) {
      for (int h = 0; h < kC; ++h) {
        for (int e = 0; e < 64; ++e) sums[64 * h + e] = simgpu::widen(w.lanes<Half>(c[h])[e]);
      }
    } else {
      for (int h = 0; h < kC / 2; ++h) {
        const C *even = w.lanes<C>(c[2 * h]), *odd = w.lanes<C>(c[2 * h + 1]);
        for (int l = 0; l < 32; ++l) sums[64 * h + 2 * l] = even[l], sums[64 * h + 2 * l + 1] = odd[l];
      }
    }
    if constexpr (kSparse) expand(w, i, c + kC, stored, dense);
    const Value* left = kSparse ? dense : stored;
    for (int m = 0; m < M; ++m) {
      Sum row[N];
      for (int n = 0; n < N; ++n) row[n] = sums[m * N + n];
      for (int k = 0; k < K; ++k) {
        const Value x = left[m * K + k];
        for (int n = 0; n < N; ++n) row[n] = multiply_add(x, right[k * N + n], row[n]);
      }
      for (int n = 0; n < N; ++n) sums[m * N + n] = row[n];
    }
    if constexpr (kHalfC) {
      for (int h = 0; h < kC; ++h) {
        for (int e = 0; e < 64; ++e) w.lanes<Half>(d[h])[e] = narrow<Half>(sums[64 * h + e]);
      }
    } else {
      const bool saturating = i.mode != 0;  // .satfinite, of s32
      for (int h = 0; h < kC / 2; ++h) {
        C *even = w.lanes<C>(d[2 * h]), *odd = w.lanes<C>(d[2 * h + 1]);
        for (int l = 0; l < 32; ++l) {
          even[l] = result(sums[64 * h + 2 * l], saturating);
          odd[l] = result(sums[64 * h + 2 * l + 1], saturating);
        }
      }
    }
    ++counts->work[i.number].mma_count;
    counts->work[i.number].mma_flops += 2 * M * N * K;
  }

 private:
  static float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
  static i64 multiply_add(i32 a, i32 b, i64 c) { return c + a * b; }
  static float result(float x, bool) { return x; }
  static double result(double x, bool) { return x; }
  static i32 result(i64 x, bool saturating) {
    return static_cast<i32>(saturating ? std::clamp<i64>(x, INT32_MIN, INT32_MAX) : x);
  }

  // `operands`: the slots of the metadata and of the sparsity selector.
  static void expand(Warp& w, const Insn& i, const u32* operands, const Value* stored, Value* dense) {
    const u32* metadata = w.lanes<u32>(operands[0]);
    const u32 selector = w.lanes<u32>(operands[1])[0];
    if (selector >= kSelectors)
      report(w, i, 0, FaultKind::kInvalidMetadata,
             "the sparsity selector is " + std::to_string(selector) + "; this shape has "
                 + std::to_string(kSelectors));
    std::fill_n(dense, M * K, Value{});
    for (int m = 0; m < M; ++m) {
      u64 bits = 0;
      int lanes[kParts], part_bits = 0;
      for (int part = 0; part < kParts; ++part) {
        const MetadataPlace p = metadata_place(part, kParts, m >= 8, kBytes, static_cast<int>(selector));
        lanes[part] = m % 8 * 4 + p.thread;
        part_bits = p.bits;
        const u64 word = (metadata[lanes[part]] >> p.shift) & ((u64{1} << p.bits) - 1);
        bits |= word << (part * p.bits);
      }
      for (int k = 0; k < kStored; ++k, bits >>= kIndexBits) {
        const int lane = lanes[k * kIndexBits / part_bits];
        int column;
        if constexpr (kIndexBits == 4) {  // tf32: one of two, counted in halves of 16 bits
          const u64 pair = bits & 15;
          if (pair != 0b0100 && pair != 0b1110)
            report(w, i, lane, FaultKind::kInvalidMetadata,
                   "metadata " + std::to_string(pair) + " of row " + std::to_string(m)
                       + " of A: 4 and 14 are defined");
          column = 2 * k + (pair == 0b1110 ? 1 : 0);
        } else {  // two of four
          const u64 first = bits & 3, second = bits >> 2 & 3;
          if (k % 2 == 0 && (i.count != 0 ? first >= second : first == second))
            report(w, i, lane, FaultKind::kInvalidMetadata,
                   "metadata of row " + std::to_string(m) + " of A: elements " + std::to_string(first)
                       + " and " + std::to_string(second) + " of four, which must "
                       + (i.count != 0 ? "ascend" : "differ"));
          column = k / 2 * 4 + static_cast<int>(first);
        }
        dense[m * K + column] = stored[m * kStored + k];
      }
    }
  }
};

struct MmaForm {
  std::string_view shape, a, b, c;
  bool sparse;
  int registers_d, registers_a, registers_b, bytes_d, bytes_a;
  Handler run;
};
template <class T>
constexpr std::string_view kTypeName = "";
template <>
constexpr std::string_view kTypeName<Half> = "f16";
template <>
constexpr std::string_view kTypeName<Bfloat> = "bf16";
template <>
constexpr std::string_view kTypeName<Tf32> = "tf32";
template <>
constexpr std::string_view kTypeName<float> = "f32";
template <>
constexpr std::string_view kTypeName<double> = "f64";
template <>
constexpr std::string_view kTypeName<int8_t> = "s8";
template <>
constexpr std::string_view kTypeName<u8> = "u8";
template <>
constexpr std::string_view kTypeName<i32> = "s32";

template <int M, int K, class A, class B, class C, bool kSparse = false>
constexpr MmaForm form(std::string_view shape) {
  using I = Mma<M, K, A, B, C, kSparse>;
  return {shape, kTypeName<A>, kTypeName<B>,           kTypeName<C>,      kSparse, I::kC,
          I::kA, I::kB,        sizeof(C) == 8 ? 8 : 4, I::kRegisterBytes, I::run};
}
constexpr MmaForm kForms[] = {
    form<16, 16, Bfloat, Bfloat, float>("m16n8k16"),
    form<16, 16, Half, Half, float>("m16n8k16"),
    form<16, 16, Half, Half, Half>("m16n8k16"),
    form<16, 8, Bfloat, Bfloat, float>("m16n8k8"),
    form<16, 8, Half, Half, float>("m16n8k8"),
    form<16, 8, Half, Half, Half>("m16n8k8"),
    form<16, 8, Tf32, Tf32, float>("m16n8k8"),
    form<16, 4, Tf32, Tf32, float>("m16n8k4"),
    form<8, 4, double, double, double>("m8n8k4"),
    form<16, 32, int8_t, int8_t, i32>("m16n8k32"),
    form<16, 32, int8_t, u8, i32>("m16n8k32"),
    form<16, 32, u8, int8_t, i32>("m16n8k32"),
    form<16, 32, u8, u8, i32>("m16n8k32"),
    form<16, 16, int8_t, int8_t, i32>("m16n8k16"),
    form<16, 16, int8_t, u8, i32>("m16n8k16"),
    form<16, 16, u8, int8_t, i32>("m16n8k16"),
    form<16, 16, u8, u8, i32>("m16n8k16"),
    form<8, 16, int8_t, int8_t, i32>("m8n8k16"),
    form<8, 16, int8_t, u8, i32>("m8n8k16"),
    form<8, 16, u8, int8_t, i32>("m8n8k16"),
    form<8, 16, u8, u8, i32>("m8n8k16"),
    form<16, 16, Bfloat, Bfloat, float, true>("m16n8k16"),
    form<16, 16, Half, Half, float, true>("m16n8k16"),
    form<16, 16, Half, Half, Half, true>("m16n8k16"),
    form<16, 32, Bfloat, Bfloat, float, true>("m16n8k32"),
    form<16, 32, Half, Half, float, true>("m16n8k32"),
    form<16, 32, Half, Half, Half, true>("m16n8k32"),
    form<16, 8, Tf32, Tf32, float, true>("m16n8k8"),
    form<16, 16, Tf32, Tf32, float, true>("m16n8k16"),
    form<16, 32, int8_t, int8_t, i32, true>("m16n8k32"),
    form<16, 32, u8, u8, i32, true>("m16n8k32"),
    form<16, 64, int8_t, int8_t, i32, true>("m16n8k64"),
    form<16, 64, u8, u8, i32, true>("m16n8k64"),
};

bool select_mma(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  insn.category = InstructionClass::kMatrixMultiply;
  const bool ordered = o.has("sp::ordered_metadata"), sparse = ordered || o.has("sp");
  if (!o.has("row") || !o.has("col") || o.parts.size() < 9 || args.size() != (sparse ? 6u : 4u)) return false;
  const size_t n = o.parts.size();
  for (const MmaForm& f : kForms) {
    if (f.sparse != sparse || !o.has(f.shape) || o.parts[n - 4] != f.c || o.parts[n - 3] != f.a
        || o.parts[n - 2] != f.b || o.parts[n - 1] != f.c)
      continue;
    const int wanted[] = {f.registers_d, f.registers_a, f.registers_b, f.registers_d, 1, 1};
    const int bytes[] = {f.bytes_d, f.bytes_a, f.bytes_a, f.bytes_d, 4, 4};
    std::vector<u32> slots;
    for (size_t k = 0; k < args.size(); ++k) {
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
    insn.mode = o.has("satfinite") ? 1 : 0;
    insn.count = ordered ? 1 : 0;
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
  if (o.name() == "mma" && o.has("sync")) return select_mma(d, insn, o, args);
  if (o.name() != "ldmatrix" || !o.has("m8n8") || o.type() != "b16") return false;
  insn.category = InstructionClass::kMatrixLoad;
  insn.count = o.has("x4") ? 4 : o.has("x2") ? 2 : o.has("x1") ? 1 : 0;
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
