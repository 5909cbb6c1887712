// ld, st, cp.async, fences.
#include <algorithm>
#include <array>
#include <type_traits>

#include "exec/access.h"

namespace simgpu {
namespace {

// f(std::integral_constant<u32, n>) for a width of 1, 2, 4, 8 or 16 bytes: copies of a constant size are
// moves.
template <class F>
void with_width(u32 n, F&& f) {
  switch (n) {
    case 1:
      return f(std::integral_constant<u32, 1>());
    case 2:
      return f(std::integral_constant<u32, 2>());
    case 4:
      return f(std::integral_constant<u32, 4>());
    case 8:
      return f(std::integral_constant<u32, 8>());
    default:
      return f(std::integral_constant<u32, 16>());
  }
}

// One register from element k of every lane's memory.
template <bool kSignExtend>
void load_element(std::byte* target, const Insn& i, u32 mask, const Access& access, u32 k) {
  if (access.contiguous && i.bytes == 4 && i.mode == 4 && i.count == 1) {
    std::memcpy(target, access.at[0], 32 * sizeof(u32));
    return;
  }
  with_width(i.bytes, [&](auto width) {
    constexpr u32 kBytes = width;
    if (i.mode == kBytes && mask == kFullMask && access.same) {
      std::array<std::byte, kBytes> value;
      std::memcpy(value.data(), access.at[0] + kBytes * k, kBytes);
      std::fill_n(reinterpret_cast<std::array<std::byte, kBytes>*>(target), 32, value);
    } else if (i.mode == kBytes) {
      for_lanes(mask, [&](int l) { std::memcpy(target + kBytes * l, access.at[l] + kBytes * k, kBytes); });
    } else if constexpr (kBytes < 8) {
      with_width(i.mode, [&](auto register_width) {
        for_lanes(mask, [&](int l) {
          u64 value[2] = {};
          std::memcpy(value, access.at[l] + kBytes * k, kBytes);
          if (kSignExtend && (value[0] >> (8 * kBytes - 1) & 1) != 0) value[0] |= ~u64{0} << (8 * kBytes);
          std::memcpy(target + register_width * l, value, register_width);
        });
      });
    }
  });
}
// Vectors of 32-bit elements, of all 32 lanes.
template <u32 kCount>
void load_vectors(Warp& w, const u32* targets, const Access& access) {
  u32 rows[32][kCount], columns[kCount][32];
  if (access.contiguous) {
    // Blocks of 256 threads take 4 KiB at a time, where the processor's own prefetching ends.
    constexpr u32 kAhead = 8192;
    for (u32 b = 0; b < sizeof rows; b += 64) __builtin_prefetch(access.at[0] + kAhead + b);
    std::memcpy(rows, access.at[0], sizeof rows);
  } else {
    for (int l = 0; l < 32; ++l) std::memcpy(rows[l], access.at[l], sizeof rows[l]);
  }
  for (int l = 0; l < 32; ++l) {
    for (u32 k = 0; k < kCount; ++k) columns[k][l] = rows[l][k];
  }
  for (u32 k = 0; k < kCount; ++k) std::memcpy(w.lanes<u32>(targets[k]), columns[k], sizeof columns[k]);
}
template <u32 kCount>
void store_vectors(Warp& w, const u32* sources, const Access& access) {
  u32 rows[32][kCount], columns[kCount][32];
  for (u32 k = 0; k < kCount; ++k) std::memcpy(columns[k], w.lanes<u32>(sources[k]), sizeof columns[k]);
  for (int l = 0; l < 32; ++l) {
    for (u32 k = 0; k < kCount; ++k) rows[l][k] = columns[k][l];
  }
  if (access.contiguous) {
    std::memcpy(access.at[0], rows, sizeof rows);
  } else {
    for (int l = 0; l < 32; ++l) std::memcpy(access.at[l], rows[l], sizeof rows[l]);
  }
}
// The registers of a vector, or the one: operands[extra ...], each of register width `mode`.
template <bool kSignExtend>
void load(Warp& w, const Insn& i, u32 mask) {
  Access access;
  resolve_access(w, i, mask, u32{i.bytes} * i.count, AccessKind::kRead, access);
  const u32* targets = &w.frame->function->operands[i.extra];
  if (mask == kFullMask && i.bytes == 4 && i.mode == 4 && !access.same) {
    if (i.count == 4) return load_vectors<4>(w, targets, access);
    if (i.count == 2) return load_vectors<2>(w, targets, access);
  }
  for (u32 k = 0; k < i.count; ++k) load_element<kSignExtend>(w.file + targets[k], i, mask, access, k);
}
// op: result, -, offset in the kernel's parameters, which is one for all lanes.
template <class T>
void load_parameter(Warp& w, const Insn& i, u32 mask) {
  const std::span<const u8> params = w.block->launch->params;
  if (u64{i.op[2]} + sizeof(T) > params.size()) return load<false>(w, i, mask);  // which reports it
  T value;
  std::memcpy(&value, params.data() + i.op[2], sizeof value);
  map(w.lanes<T>(i.op[0]), mask, [=](int) { return value; });
}
void store(Warp& w, const Insn& i, u32 mask) {
  Access access;
  resolve_access(w, i, mask, u32{i.bytes} * i.count, AccessKind::kWrite, access);
  if (i.relaxed) w.block->launch->synchronised = true;
  const u32* sources = &w.frame->function->operands[i.extra];
  if (mask == kFullMask && i.bytes == 4 && i.mode == 4) {
    if (i.count == 4) return store_vectors<4>(w, sources, access);
    if (i.count == 2) return store_vectors<2>(w, sources, access);
    if (access.contiguous) {
      std::memcpy(access.at[0], w.lanes<u32>(sources[0]), 32 * sizeof(u32));
      return;
    }
  }
  for (u32 k = 0; k < i.count; ++k) {
    const std::byte* source = w.file + sources[k];
    with_width(i.bytes, [&](auto width) {
      constexpr u32 kBytes = width;
      for_lanes(mask, [&](int l) { std::memcpy(access.at[l] + kBytes * k, source + l * i.mode, kBytes); });
    });
  }
}

void async_copy(Warp& w, const Insn& i, u32 mask) {
  u64 to[32];
  lane_addresses(w, i, to);
  Insn source = i;  // the global side
  source.space = Space::kGlobal;
  source.op[1] = i.op[2];
  source.address_bytes = 8;
  source.imm = static_cast<i32>(w.frame->function->operands[i.extra]);
  const u32* sizes = i.op[3] == kNone ? nullptr : w.lanes<u32>(i.op[3]);
  u32 reading = mask;
  for_lanes(mask, [&](int l) {
    if (sizes != nullptr && sizes[l] == 0)
      reading &= ~(1u << l);  // nothing is read: the address may be anything
  });
  Access access;
  u32 whole = reading;  // that copy all bytes
  for (int l = 0; sizes != nullptr && l < 32; ++l) whole &= ~(u32{sizes[l] < i.bytes} << l);
  if (whole != 0) resolve_access(w, source, whole, i.bytes, AccessKind::kRead, access);
  for_lanes(reading & ~whole, [&](int l) {
    Access one;
    resolve_access(w, source, 1u << l, std::min<u32>(sizes[l], i.bytes), AccessKind::kRead, one);
    access.at[l] = one.at[l];
  });
  for (int l = 0; l < 32; ++l) to[l] = static_cast<u32>(to[l]);
  begin_copies(w, i, mask, i.bytes, to);
  while (mask != 0) {  // lanes of one group together
    const u32 group = w.committed[std::countr_zero(mask)];
    u32 same = 0;
    for (int l = 0; l < 32; ++l) same |= u32{w.committed[l] == group} << l;
    same &= mask;
    mask &= ~same;
    std::unique_ptr<AsyncCopy> copy;
    if (w.spare_copies.empty()) {
      copy = std::make_unique<AsyncCopy>();
    } else {
      copy = std::move(w.spare_copies.back());
      w.spare_copies.pop_back();
    }
    copy->mask = same;
    copy->group = group;
    copy->bytes = i.bytes;
    for_lanes(same, [&](int l) {
      copy->shared[l] = static_cast<u32>(to[l]);
      const u32 n = sizes == nullptr ? i.bytes : std::min<u32>(sizes[l], i.bytes);
      if (n == 16) {
        std::memcpy(copy->data[l], access.at[l], 16);
      } else {
        std::memset(copy->data[l], 0, 16);
        if (n > 0) std::memcpy(copy->data[l], access.at[l], n);
      }
    });
    w.copies.push_back(std::move(copy));
  }
}
void commit_group(Warp& w, const Insn&, u32 mask) {
  for_lanes(mask, [&](int l) { ++w.committed[l]; });
}
void wait_group(Warp& w, const Insn& i, u32 mask) { complete_copies(w, mask, static_cast<u32>(i.imm)); }
void wait_all(Warp& w, const Insn& i, u32 mask) {
  commit_group(w, i, mask);
  complete_copies(w, mask, 0);
}
void device_fence(Warp& w, const Insn&, u32) { w.block->launch->synchronised = true; }
void nothing(Warp&, const Insn&, u32) {}

InstructionClass category(const Insn& insn, bool store) {
  switch (insn.space) {
    case Space::kShared:
      return store ? InstructionClass::kSharedStore : InstructionClass::kSharedLoad;
    case Space::kLocal:
      return InstructionClass::kLocal;
    case Space::kParam:
    case Space::kFrame:
      return InstructionClass::kParameter;
    default:
      return store ? InstructionClass::kGlobalStore : InstructionClass::kGlobalLoad;
  }
}

bool select_async(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  insn.category = InstructionClass::kAsyncCopy;
  if (o.has("commit_group")) return insn.run = commit_group, true;
  if (o.has("wait_all")) return insn.run = wait_all, true;
  if (o.has("wait_group")) {
    insn.imm = std::strtoll(std::string(args.at(0).word).c_str(), nullptr, 0);
    return insn.run = wait_group, true;
  }
  if ((!o.has("ca") && !o.has("cg")) || (!o.has("shared") && !o.has("shared::cta"))) return false;
  insn.space = Space::kShared;
  d.address(insn, args.at(0));
  Insn source;
  source.space = Space::kGlobal;
  d.address(source, args.at(1));
  insn.op[2] = source.op[1];
  const u32 offset[] = {static_cast<u32>(source.imm)};
  d.add_operands(insn, offset);
  insn.bytes = static_cast<u8>(std::strtoul(std::string(args.at(2).word).c_str(), nullptr, 0));
  if (args.size() > 3 && args[3].kind == Argument::Kind::kWord) {
    if (d.width_of(args[3].word) == 0) return false;  // ignore-src
    insn.op[3] = d.value(args[3], 4);
  }
  insn.run = async_copy;
  return true;
}

}  // namespace

bool select_memory(Decoder& d, Insn& insn, const Opcode& o, const std::vector<Argument>& args) {
  const std::string_view name = o.name();
  if (name == "cp" && o.has("async")) return select_async(d, insn, o, args);
  if (name == "membar" || name == "fence") {
    insn.category = InstructionClass::kBarrier;
    const bool block_only = o.has("cta");
    return insn.run = block_only ? nothing : device_fence, true;
  }
  if (name == "prefetch" || name == "prefetchu" || name == "discard" || name == "applypriority")
    return insn.run = nothing, true;
  const bool is_store = name == "st";
  if (!is_store && name != "ld" && name != "ldu") return false;
  const auto has = [&](std::string_view space) {
    return o.has(space) || o.has(std::string(space) + "::cta");
  };
  insn.space = has("global")   ? Space::kGlobal
               : has("shared") ? Space::kShared
               : has("local")  ? Space::kLocal
               : has("param")  ? Space::kParam
               : has("const")  ? Space::kConst
                               : Space::kGeneric;
  insn.relaxed = o.has("volatile") || o.has("relaxed") || o.has("acquire") || o.has("release");
  insn.bytes = static_cast<u8>(type_bytes(o.type()));
  if (insn.bytes == 0) return false;
  const Argument& place = args.at(is_store ? 0 : 1);
  const Argument& data = args.at(is_store ? 1 : 0);
  std::vector<std::string_view> names =
      data.kind == Argument::Kind::kList ? data.elements : std::vector<std::string_view>{data.word};
  insn.count = static_cast<u8>(names.size());
  std::vector<u32> slots;
  insn.mode = insn.bytes;
  for (const std::string_view r : names) {
    if (const u32 width = d.width_of(r); width != kNone && width != 0) insn.mode = static_cast<u8>(width);
  }
  for (const std::string_view r : names)
    slots.push_back(is_store ? d.value(r, insn.mode) : d.result(r, insn.mode));
  d.address(insn, place);
  d.add_operands(insn, slots);
  insn.category = category(insn, is_store);
  insn.run = is_store ? store : o.type()[0] == 's' ? load<true> : load<false>;
  const auto parameter = insn.space == Space::kParam ? d.variable_address(place.word) : std::nullopt;
  if (!is_store && parameter && insn.count == 1 && insn.mode == insn.bytes
      && (insn.bytes == 4 || insn.bytes == 8)) {
    insn.op[0] = slots[0];
    insn.op[2] = static_cast<u32>(*parameter + static_cast<u64>(insn.imm));
    insn.run = insn.bytes == 4 ? load_parameter<u32> : load_parameter<u64>;
  }
  return true;
}

}  // namespace simgpu
