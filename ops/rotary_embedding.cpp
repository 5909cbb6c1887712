#include "ops/rotary_embedding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <mutex>
#include <numbers>
#include <vector>

#include "core/autograd.h"
#include "kernels/rotary_embedding.h"
#include "ops/dispatch.h"

namespace ergon::ops {
namespace {

constexpr std::int64_t kMaxPositions = std::int64_t{1} << 22;

struct TableKey {
  double theta;
  std::int64_t head_dim;
  std::optional<Llama3RopeScaling> scaling;
  DType dtype;
  Device device;

  friend bool operator==(const TableKey&, const TableKey&) = default;
};

// Radians per position of pair i.
double frequency(const TableKey& key, std::int64_t i) {
  const double plain = std::pow(key.theta, -2.0 * static_cast<double>(i) / static_cast<double>(key.head_dim));
  if (!key.scaling) return plain;
  // Waves that repeat often within the original context stay, those longer than it are stretched, and those
  // in between get a mixture.
  const Llama3RopeScaling& scaling = *key.scaling;
  const double repeats = static_cast<double>(scaling.original_max_position) * plain / (2 * std::numbers::pi);
  const double kept = std::clamp(
      (repeats - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0);
  return kept * plain + (1 - kept) * plain / scaling.factor;
}

// (positions, 2, head_dim / 2): cosines and sines.
Tensor make_table(const TableKey& key, std::int64_t positions) {
  const std::int64_t half = key.head_dim / 2;
  std::vector<double> values(static_cast<std::size_t>(positions * 2 * half));
  for (std::int64_t i = 0; i < half; ++i) {
    const double step = frequency(key, i);
    for (std::int64_t position = 0; position < positions; ++position) {
      const auto at = static_cast<std::size_t>(position * 2 * half + i);
      values[at] = std::cos(static_cast<double>(position) * step);
      values[at + static_cast<std::size_t>(half)] = std::sin(static_cast<double>(position) * step);
    }
  }
  return from_vector(values, {positions, 2, half}, {key.dtype, key.device});
}

// A table of at least `positions` rows, made on first use and grown by doubling.
Tensor cached_table(const TableKey& key, std::int64_t positions) {
  struct Entry {
    TableKey key;
    Tensor table;
  };
  static std::mutex mutex;
  static std::vector<Entry> entries;
  std::lock_guard lock(mutex);
  auto entry = std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.key == key; });
  if (entry == entries.end()) entry = entries.insert(entries.end(), {key, {}});
  if (!entry->table.defined() || entry->table.size(0) < positions) {
    const auto rows = std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(positions, 256)));
    entry->table = make_table(key, static_cast<std::int64_t>(rows));
  }
  return entry->table;
}

// Everything but the data.
struct Rotation {
  Tensor table;
  Tensor positions;  // i64, contiguous; undefined: offset + t
  std::int64_t position_limit;
  std::int64_t offset;
  bool interleaved;
};

void check(const Tensor& x, const RotaryOptions& options) {
  ERGON_CHECK(x.dim() == 4 && x.size(3) % 2 == 0,
              "[rotary_embedding] x {}: expected (batch, seqlen, num_heads, head_dim) with an even head_dim",
              x.shape());
  ERGON_CHECK(is_floating_point(x.dtype()), "[rotary_embedding] x is {}: expected one of f32, bf16, f16, f64",
              name_of(x.dtype()));
  ERGON_CHECK(options.theta > 0, "[rotary_embedding] theta {}: expected a positive number", options.theta);
  if (!options.positions.defined()) return;
  const Shape& shape = options.positions.shape();
  ERGON_CHECK(shape == Shape{x.size(1)} || shape == (Shape{x.size(0), x.size(1)}),
              "[rotary_embedding] x {} and positions {}: expected positions (seqlen) or (batch, seqlen)",
              x.shape(), shape);
  ERGON_CHECK(options.positions.dtype() == DType::i32 || options.positions.dtype() == DType::i64,
              "[rotary_embedding] positions are {}: expected i32 or i64", name_of(options.positions.dtype()));
  ERGON_CHECK(options.position_offset == 0,
              "[rotary_embedding] position_offset {} together with positions: give one",
              options.position_offset);
}

Rotation make_rotation(const Tensor& x, const RotaryOptions& options) {
  std::int64_t first = options.position_offset, last = first + std::max<std::int64_t>(x.size(1), 1) - 1;
  Tensor positions;
  if (options.positions.defined()) {
    positions = options.positions.to(DType::i64).contiguous();
    if (positions.device().is_cpu()) {
      const auto* values = positions.data<std::int64_t>();
      const auto [low, high] = std::minmax_element(values, values + positions.numel());
      if (positions.numel() > 0) first = *low, last = *high;
    } else {
      last = options.max_positions - 1;  // the kernel checks them
    }
  }
  ERGON_CHECK(first >= 0 && last < kMaxPositions, "[rotary_embedding] positions {} to {}: expected 0 to {}",
              first, last, kMaxPositions - 1);
  const DType dtype = x.dtype() == DType::f64 ? DType::f64 : DType::f32;
  return {cached_table({options.theta, x.size(3), options.scaling, dtype, x.device()}, last + 1), positions,
          last + 1, options.position_offset, options.interleaved};
}

Tensor rotate(const Tensor& input, const Rotation& rotation, bool inverse) {
  NoGradGuard no_grad;
  const Tensor x = input.stride(3) == 1 || input.size(3) <= 1 ? input : input.contiguous();
  const Tensor y = empty(x.shape(), x.options());
  const bool per_sequence = rotation.positions.defined() && rotation.positions.dim() == 2;
  ERGON_KERNEL(x.device(), rotary_embedding,
               {.batch = x.size(0),
                .seqlen = x.size(1),
                .num_heads = x.size(2),
                .head_dim = x.size(3),
                .dtype = x.dtype(),
                .x = x.data_ptr(),
                .batch_stride = x.stride(0),
                .seqlen_stride = x.stride(1),
                .head_stride = x.stride(2),
                .y = y.data_ptr(),
                .table = rotation.table.data_ptr(),
                .positions = rotation.positions.defined()
                                 ? static_cast<const std::int64_t*>(rotation.positions.data_ptr())
                                 : nullptr,
                .position_stride = per_sequence ? x.size(1) : 0,
                .position_limit = rotation.position_limit,
                .offset = rotation.offset,
                .interleaved = rotation.interleaved,
                .inverse = inverse});
  return y;
}

}  // namespace

Tensor rotary_embedding(const Tensor& x, const RotaryOptions& options) {
  OpScope scope("rotary_embedding", x, options.positions);
  check(x, options);
  Rotation rotation = make_rotation(x, options);
  const Tensor y = rotate(x, rotation, false);
  return autograd::record(
      "rotary_embedding", y, {x},
      [rotation = std::move(rotation)](const Tensor& grad_output, const autograd::NeedsGrad&) {
        return autograd::Gradients{rotate(grad_output, rotation, true)};
      });
}

}  // namespace ergon::ops
