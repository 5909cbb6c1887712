// The functions that nvcc calls without giving their code: printf and the failure of an assertion.
#include <cstdio>
#include <mutex>

#include "exec/executor.h"
#include "memory.h"

namespace simgpu {
namespace {

// A byte range at a generic address, as the lane sees it.
const u8* generic(const Warp& w, const Insn& insn, int lane, u64 address, u64 bytes) {
  const u64 window = address & kWindowMask, offset = address & ~kWindowMask;
  if (window == kLocalWindow) {
    const u64 stack = w.local.size() / 32;
    if (offset + bytes <= stack)
      return reinterpret_cast<const u8*>(w.local.data()) + static_cast<u64>(lane) * stack + offset;
  } else if (window == kSharedWindow) {
    if (offset + bytes <= w.block->shared.size())
      return reinterpret_cast<const u8*>(w.block->shared.data()) + offset;
  } else if (memory::contains(address, bytes)) {
    return reinterpret_cast<const u8*>(address);
  }
  report(w, insn, lane, FaultKind::kOutOfBounds, "printf or assert reads outside memory");
}
std::string text_at(const Warp& w, const Insn& insn, int lane, u64 address) {
  std::string text;
  for (u64 k = 0;; ++k) {
    const char c = static_cast<char>(*generic(w, insn, lane, address + k, 1));
    if (c == '\0') return text;
    text += c;
  }
}

u64 argument(const Warp& w, const Call& call, size_t index, int lane) {
  const Area& area = call.arguments.at(index);
  u64 value = 0;
  std::memcpy(&value, w.file + area.offset + static_cast<u32>(lane) * area.bytes,
              std::min<u32>(area.bytes, 8));
  return value;
}

// The arguments lie one after another in the buffer, each at a multiple of its size.
std::string format(const Warp& w, const Insn& insn, int lane, const std::string& pattern, u64 buffer) {
  std::string out;
  u64 at = 0;
  const auto next = [&](u64 bytes) {
    at = (at + bytes - 1) / bytes * bytes;
    u64 value = 0;
    std::memcpy(&value, generic(w, insn, lane, buffer + at, bytes), bytes);
    at += bytes;
    return value;
  };
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '%') {
      out += pattern[i];
      continue;
    }
    std::string spec = "%";
    bool wide = false;
    for (++i; i < pattern.size(); ++i) {
      const char c = pattern[i];
      if (c == '*') {
        spec += std::to_string(static_cast<i32>(next(4)));
      } else if (c == 'l' || c == 'z' || c == 'j' || c == 't') {
        wide = true;
      } else if (c != 'h') {
        spec += c;
        if (std::isalpha(static_cast<unsigned char>(c)) || c == '%') break;
      }
    }
    char piece[512];
    const char kind = spec.back();
    spec.pop_back();
    if (kind == '%') {
      out += '%';
      continue;
    }
    if (kind == 's') {
      std::snprintf(piece, sizeof piece, (spec + "s").c_str(), text_at(w, insn, lane, next(8)).c_str());
    } else if (std::strchr("aAeEfFgG", kind) != nullptr) {
      std::snprintf(piece, sizeof piece, (spec + kind).c_str(), std::bit_cast<double>(next(8)));
    } else if (kind == 'p') {
      std::snprintf(piece, sizeof piece, (spec + kind).c_str(), reinterpret_cast<void*>(next(8)));
    } else if (std::strchr("diuoxXc", kind) != nullptr) {
      const u64 raw = next(wide ? 8 : 4);
      const bool is_signed = kind == 'd' || kind == 'i';
      const auto value =
          is_signed && !wide ? static_cast<long long>(static_cast<i32>(raw)) : static_cast<long long>(raw);
      std::snprintf(piece, sizeof piece, (spec + (kind == 'c' ? "" : "ll") + kind).c_str(), value);
    } else {
      report(w, insn, lane, FaultKind::kAssert, "printf: %" + std::string(1, kind) + " is not a conversion");
    }
    out += piece;
  }
  return out;
}

}  // namespace

void run_builtin(Warp& w, const Insn& insn, const Call& call, u32 mask) {
  const int first = std::countr_zero(mask);
  if (call.builtin == "__assertfail") {
    report(w, insn, first, FaultKind::kAssert,
           "assertion `" + text_at(w, insn, first, argument(w, call, 0, first)) + "' failed, "
               + text_at(w, insn, first, argument(w, call, 1, first)) + ":"
               + std::to_string(static_cast<u32>(argument(w, call, 2, first))) + " in "
               + text_at(w, insn, first, argument(w, call, 3, first)));
  }
  for_lanes(mask, [&](int l) {
    const std::string text =
        format(w, insn, l, text_at(w, insn, l, argument(w, call, 0, l)), argument(w, call, 1, l));
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    std::fwrite(text.data(), 1, text.size(), stdout);
    if (!call.results.empty()) {
      const u32 written = static_cast<u32>(text.size());
      std::memcpy(w.file + call.results[0].offset + static_cast<u32>(l) * call.results[0].bytes, &written, 4);
    }
  });
  std::fflush(stdout);
}

}  // namespace simgpu
