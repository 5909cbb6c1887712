#include "kernels/conv2d.h"

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/conv2d_tile.h"
#include "kernels/cpu/vector_loop.h"

namespace ergon::kernels::cpu {
namespace {

using namespace conv2d_detail;  // NOLINT: the other half of this file

// A buffer that a thread keeps between calls. `kSlot` tells apart those in use at the same time.
template <class T, int kSlot>
T* scratch(int64_t size) {
  thread_local std::vector<T> buffer;
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(static_cast<std::size_t>(size));
  return buffer.data();
}

// How x is staged for the forward pass and the weight gradient: for every channel one plane for each residue
// (of row and column, modulo the stride) that a tap reads.
struct InputStaging {
  explicit InputStaging(const Conv2dGeometry& geometry) : g(geometry) {
    for (int d = 0; d < 2; ++d) {
      for (int64_t a = 0; a < g.kernel[d]; ++a) {
        const int64_t residue = a * g.dilation[d] % g.stride[d];
        if (std::find(residues[d].begin(), residues[d].end(), residue) == residues[d].end())
          residues[d].push_back(residue);
      }
      size[d] = g.output[d] + (g.kernel[d] - 1) * g.dilation[d] / g.stride[d];
    }
    plane = size[0] * size[1];
    channel = plane * static_cast<int64_t>(residues[0].size() * residues[1].size());
    columns = (g.output[0] - 1) * size[1] + g.output[1];
    for (int64_t c = 0; c < g.group_inputs(); ++c) {
      for (int64_t a = 0; a < g.kernel[0]; ++a) {
        for (int64_t b = 0; b < g.kernel[1]; ++b) {
          const auto [row_plane, row] = locate(0, a);
          const auto [col_plane, col] = locate(1, b);
          const int64_t index = row_plane * static_cast<int64_t>(residues[1].size()) + col_plane;
          offsets.push_back(c * channel + index * plane + row * size[1] + col);
        }
      }
    }
  }

  // Elements of one image's group, with what the last vector reads beyond.
  int64_t elements(int64_t lanes) const { return g.group_inputs() * channel + lanes; }

  // x: the group's first channel of one image.
  template <class S, class T>
  void stage(const S* x, T* target) const {
    for (int64_t c = 0; c < g.group_inputs(); ++c, x += g.input[0] * g.input[1]) {
      for (const int64_t row : residues[0]) {
        for (const int64_t col : residues[1]) {
          stage_plane(x, g.input[0], g.input[1], {row - g.padding[0], g.stride[0], size[0]},
                      {col - g.padding[1], g.stride[1], size[1]}, target);
          target += plane;
        }
      }
    }
    std::fill_n(target, kLanes<T>, T(0));
  }

  const Conv2dGeometry& g;
  std::array<std::vector<int64_t>, 2> residues;
  std::array<int64_t, 2> size{};  // of a plane
  int64_t plane = 0, channel = 0;
  int64_t columns = 0;           // output position (i, j) is column i * size[1] + j
  std::vector<int64_t> offsets;  // of the taps (c, a, b)

 private:
  // The plane and the position in it that kernel index `a` of dimension d starts at.
  std::pair<int64_t, int64_t> locate(int d, int64_t a) const {
    const int64_t at = a * g.dilation[d];
    const auto found = std::find(residues[d].begin(), residues[d].end(), at % g.stride[d]);
    return {found - residues[d].begin(), at / g.stride[d]};
  }
};

// (rows, taps) → (blocks, taps, kRows), rows filled up with zeros. weight(row, tap) gives an element.
template <int kRows, class T, class F>
std::vector<T> pack(int64_t rows, int64_t taps, const F& weight) {
  std::vector<T> packed(static_cast<std::size_t>(round_up(rows, kRows) * taps));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < taps; ++k) {
      packed[static_cast<std::size_t>((r / kRows * taps + k) * kRows + r % kRows)] = weight(r, k);
    }
  }
  return packed;
}

// Parts that each of `tasks` tasks is cut into, at most `blocks`, so that there is one for every thread.
int64_t parts_of_task(int64_t tasks, int64_t blocks) {
  return std::clamp<int64_t>(num_threads() / std::max<int64_t>(tasks, 1), 1, blocks);
}

template <class Tile, class S>
void forward(const Conv2dGeometry& g, const S* x, const S* w, const S* bias, S* y) {
  using T = accumulate_t<S>;
  const InputStaging staging(g);
  const int64_t taps = g.taps(), outputs = g.group_outputs(), positions = g.output[0] * g.output[1];
  const int64_t blocks = (outputs + Tile::kRows - 1) / Tile::kRows;
  const int64_t vectors = (staging.columns + kLanes<T> - 1) / kLanes<T>, ld = vectors * kLanes<T>;
  std::vector<std::vector<T>> weights;
  for (int64_t group = 0; group < g.groups; ++group) {
    const S* of_group = w + group * outputs * taps;
    weights.push_back(pack<Tile::kRows, T>(
        outputs, taps, [&](int64_t r, int64_t k) { return convert<T>(of_group[r * taps + k]); }));
  }
  const int64_t parts = parts_of_task(g.batch * g.groups, blocks);
  parallel_for(0, g.batch * g.groups * parts, 1, [&](int64_t begin, int64_t end) {
    T* image = scratch<T, 0>(staging.elements(kLanes<T>));
    T* out = scratch<T, 1>(blocks * Tile::kRows * ld);
    T* row = scratch<T, 2>(g.output[1]);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i / parts, part = i % parts, group = task % g.groups;
      const int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
      if (i == begin || part == 0)
        staging.stage(x + task * g.group_inputs() * g.input[0] * g.input[1], image);
      const T* packed = weights[static_cast<std::size_t>(group)].data() + first * taps * Tile::kRows;
      sum_taps<Tile>(image, staging.offsets, packed, last - first, vectors, out);
      const T* sums = out;
      for (int64_t o = first * Tile::kRows; o < std::min(outputs, last * Tile::kRows); ++o, sums += ld) {
        const T shift = bias == nullptr ? T(0) : convert<T>(bias[group * outputs + o]);
        S* to = y + (task * outputs + o) * positions;
        for (int64_t r = 0; r < g.output[0]; ++r, to += g.output[1]) {
          const T* from = sums + r * staging.size[1];
          for (int64_t j = 0; j < g.output[1]; ++j) row[j] = from[j] + shift;
          convert_run(row, to, g.output[1]);
        }
      }
    }
  });
}

// The input gradient is a convolution of dout with the transposed kernel; with stride s, one for each residue
// r of the padded position u = position + padding modulo s. With u = s q + r and tap a: a * dilation = s t +
// r', only taps with r' = r contribute, from dout[q - t].
struct OutputStaging {
  explicit OutputStaging(const Conv2dGeometry& geometry) : g(geometry) {
    for (int d = 0; d < 2; ++d) {
      first[d] = g.padding[d] / g.stride[d];
      count[d] = (g.input[d] - 1 + g.padding[d]) / g.stride[d] - first[d] + 1;
      reach[d] = (g.kernel[d] - 1) * g.dilation[d] / g.stride[d];
      size[d] = count[d] + reach[d];
    }
    columns = (count[0] - 1) * size[1] + count[1];
  }

  int64_t elements(int64_t lanes) const { return g.group_outputs() * size[0] * size[1] + lanes; }

  template <class S, class T>
  void stage(const S* dout, T* target) const {
    for (int64_t o = 0; o < g.group_outputs(); ++o, dout += g.output[0] * g.output[1]) {
      stage_plane(dout, g.output[0], g.output[1], {first[0] - reach[0], 1, size[0]},
                  {first[1] - reach[1], 1, size[1]}, target);
      target += size[0] * size[1];
    }
    std::fill_n(target, kLanes<T>, T(0));
  }

  const Conv2dGeometry& g;
  std::array<int64_t, 2> first{}, count{}, reach{}, size{};
  int64_t columns = 0;  // (q_row - first, q_col - first) is column row * size[1] + col
};

// The taps of one pair of residues.
template <class T>
struct Residue {
  int64_t row = 0, col = 0;
  std::vector<int64_t> offsets;
  std::vector<std::vector<T>> weights;  // by group
};

template <int kRows, class T, class S>
std::vector<Residue<T>> make_residues(const OutputStaging& staging, const S* w) {
  const Conv2dGeometry& g = staging.g;
  const int64_t kernel = g.kernel[0] * g.kernel[1];
  std::vector<Residue<T>> residues;
  for (int64_t row = 0; row < g.stride[0]; ++row) {
    for (int64_t col = 0; col < g.stride[1]; ++col) {
      Residue<T> residue{row, col, {}, {}};
      std::vector<int64_t> sources;  // index in w of (o, channel 0, a, b)
      for (int64_t o = 0; o < g.group_outputs(); ++o) {
        for (int64_t a = 0; a < g.kernel[0]; ++a) {
          for (int64_t b = 0; b < g.kernel[1]; ++b) {
            const int64_t at_row = a * g.dilation[0], at_col = b * g.dilation[1];
            if (at_row % g.stride[0] != row || at_col % g.stride[1] != col) continue;
            residue.offsets.push_back((o * staging.size[0] + staging.reach[0] - at_row / g.stride[0])
                                          * staging.size[1]
                                      + staging.reach[1] - at_col / g.stride[1]);
            sources.push_back(o * g.taps() + a * g.kernel[1] + b);
          }
        }
      }
      for (int64_t group = 0; group < g.groups; ++group) {
        const S* of_group = w + group * g.group_outputs() * g.taps();
        residue.weights.push_back(
            pack<kRows, T>(g.group_inputs(), static_cast<int64_t>(sources.size()), [&](int64_t c, int64_t k) {
              const int64_t source = sources[static_cast<std::size_t>(k)];
              return convert<T>(of_group[source + c * kernel]);
            }));
      }
      residues.push_back(std::move(residue));
    }
  }
  return residues;
}

// Sums of one residue, `channels` rows of `out`, to their places in dx: the first channel's plane at `to`.
template <class T, class S>
void scatter_residue(const OutputStaging& staging, const Residue<T>& residue, const T* out, int64_t ld,
                     int64_t channels, S* to) {
  const Conv2dGeometry& g = staging.g;
  const int64_t row0 = g.stride[0] * staging.first[0] + residue.row - g.padding[0];
  const int64_t col0 = g.stride[1] * staging.first[1] + residue.col - g.padding[1];
  const int64_t j0 = col0 < 0 ? 1 : 0;  // the first column lies left of x at most once
  const int64_t first_col = col0 + j0 * g.stride[1];
  const int64_t columns = first_col >= g.input[1] ? 0 : (g.input[1] - 1 - first_col) / g.stride[1] + 1;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < staging.count[0]; ++i) {
      const int64_t row = row0 + i * g.stride[0];
      if (row < 0 || row >= g.input[0]) continue;
      const T* from = out + c * ld + i * staging.size[1] + j0;
      S* target = to + (c * g.input[0] + row) * g.input[1] + first_col;
      if (g.stride[1] == 1) {
        convert_run(from, target, columns);
      } else {
        for (int64_t j = 0; j < columns; ++j) target[j * g.stride[1]] = convert<S>(from[j]);
      }
    }
  }
}

template <class Tile, class S>
void backward_input(const Conv2dGeometry& g, const S* dout, const S* w, S* dx) {
  using T = accumulate_t<S>;
  const OutputStaging staging(g);
  const std::vector<Residue<T>> residues = make_residues<Tile::kRows, T>(staging, w);
  const int64_t inputs = g.group_inputs(), blocks = (inputs + Tile::kRows - 1) / Tile::kRows;
  const int64_t vectors = (staging.columns + kLanes<T> - 1) / kLanes<T>, ld = vectors * kLanes<T>;
  const int64_t parts = parts_of_task(g.batch * g.groups, blocks);
  parallel_for(0, g.batch * g.groups * parts, 1, [&](int64_t begin, int64_t end) {
    T* image = scratch<T, 0>(staging.elements(kLanes<T>));
    T* out = scratch<T, 1>(blocks * Tile::kRows * ld);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i / parts, part = i % parts;
      const int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
      const int64_t channel = first * Tile::kRows, channels = std::min(inputs, last * Tile::kRows) - channel;
      if (i == begin || part == 0) {
        staging.stage(dout + task * g.group_outputs() * g.output[0] * g.output[1], image);
      }
      for (const Residue<T>& residue : residues) {
        const T* packed = residue.weights[static_cast<std::size_t>(task % g.groups)].data()
                          + channel * static_cast<int64_t>(residue.offsets.size());
        sum_taps<Tile>(image, residue.offsets, packed, last - first, vectors, out);
        scatter_residue(staging, residue, out, ld, channels,
                        dx + (task * inputs + channel) * g.input[0] * g.input[1]);
      }
    }
  });
}

// Staged images that one tile of the weight gradient runs over before its sums leave the registers: as many
// as stay in the L2 cache.
constexpr int64_t kStagedBytes = 512 << 10;

template <class T>
bool all_finite(const T* x, int64_t n) {
  VectorSum<T> zeros;
  for_each_vector<T>(n, [&](int64_t i, auto at) { zeros.add(at, at.load(x + i) * T(0)); });
  return zeros.total() == T(0);  // an infinity times 0 is NaN
}

// The sum of dout * x at one tap over the positions of the output alone. dot_tile also multiplies what lies
// between them, by zero, which makes NaN of an infinity that the tap does not touch.
template <class T>
T dot_positions(const InputStaging& staging, const T* image, const T* dout) {
  T sum = 0;
  for (int64_t i = 0; i < staging.g.output[0]; ++i) {
    for (int64_t j = 0; j < staging.g.output[1]; ++j) {
      sum += dout[i * staging.size[1] + j] * image[i * staging.size[1] + j];
    }
  }
  return sum;
}

// dw of one group over images [begin, end), output channels [first, last) of the group: these rows of partial
// (group_outputs, taps) are overwritten.
template <class Tile, class S, class T>
void weight_chunk(const InputStaging& staging, const S* x, const S* dout, int64_t group, int64_t begin,
                  int64_t end, int64_t first, int64_t last, T* partial) {
  const Conv2dGeometry& g = staging.g;
  const int64_t taps = g.taps(), outputs = last - first;
  const int64_t vectors = (staging.columns + kLanes<T> - 1) / kLanes<T>, ld = vectors * kLanes<T>;
  const int64_t image_size = round_up(staging.elements(kLanes<T>), kLanes<T>);
  // Of all the group's channels: which images are summed in registers does not depend on the threads.
  const int64_t dout_size = round_up(g.group_outputs(), Tile::kDotRows) * ld;
  const int64_t images = std::clamp<int64_t>(
      kStagedBytes / ((image_size + dout_size) * static_cast<int64_t>(sizeof(T))), 1, end - begin);
  std::vector<int64_t> offsets = staging.offsets;
  offsets.resize(static_cast<std::size_t>(round_up(taps, kDotTaps)), offsets.front());
  T* staged = scratch<T, 0>(images * image_size);
  T* douts = scratch<T, 1>(images * dout_size);
  partial += first * taps;
  std::fill_n(partial, outputs * taps, T(0));
  for (int64_t n = begin; n < end; n += images) {
    const int64_t count = std::min(images, end - n);
    bool finite = true;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t task = (n + i) * g.groups + group;
      staging.stage(x + task * g.group_inputs() * g.input[0] * g.input[1], staged + i * image_size);
      finite = finite && all_finite(staged + i * image_size, staging.elements(kLanes<T>));
      // As wide as the staged planes, so that position (i, j) has the same index; zeros between.
      const S* from = dout + (task * g.group_outputs() + first) * g.output[0] * g.output[1];
      T* to = douts + i * dout_size;
      std::fill_n(to, round_up(outputs, Tile::kDotRows) * ld, T(0));
      for (int64_t o = 0; o < outputs; ++o) {
        for (int64_t r = 0; r < g.output[0]; ++r, from += g.output[1]) {
          convert_run(from, to + o * ld + r * staging.size[1], g.output[1]);
        }
      }
    }
    if (!finite) {
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t o = 0; o < outputs; ++o) {
          for (int64_t k = 0; k < taps; ++k) {
            partial[o * taps + k] +=
                dot_positions(staging, staged + i * image_size + staging.offsets[static_cast<std::size_t>(k)],
                              douts + i * dout_size + o * ld);
          }
        }
      }
      continue;
    }
    for (int64_t o = 0; o < outputs; o += Tile::kDotRows) {
      for (int64_t k = 0; k < taps; k += kDotTaps) {
        T sums[Tile::kDotRows * kDotTaps];
        dot_tile<Tile::kDotRows>(staged, image_size, offsets.data() + k, douts + o * ld, dout_size, ld, count,
                                 vectors, sums);
        for (int64_t r = 0; r < std::min<int64_t>(Tile::kDotRows, outputs - o); ++r) {
          for (int64_t i = 0; i < std::min<int64_t>(kDotTaps, taps - k); ++i) {
            partial[(o + r) * taps + k + i] += sums[r * kDotTaps + i];
          }
        }
      }
    }
  }
}

// Images whose share of dw is summed by one thread: at most 16 chunks.
int64_t chunk_images_of(const Conv2dGeometry& g) { return std::max<int64_t>((g.batch + 15) / 16, 1); }

template <class Tile, class S>
void backward_weight(const Conv2dGeometry& g, const S* x, const S* dout, S* dw, void* workspace) {
  using T = accumulate_t<S>;
  const InputStaging staging(g);
  const int64_t chunk_images = chunk_images_of(g);
  const int64_t chunks = (g.batch + chunk_images - 1) / chunk_images;
  const int64_t group_weights = g.group_outputs() * g.taps(), weights = g.groups * group_weights;
  T* partials = static_cast<T*>(workspace);
  const int64_t blocks = (g.group_outputs() + Tile::kDotRows - 1) / Tile::kDotRows;
  const int64_t parts = parts_of_task(chunks * g.groups, blocks);
  parallel_for(0, chunks * g.groups * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts, group = i / parts % g.groups, chunk = i / parts / g.groups;
      weight_chunk<Tile>(staging, x, dout, group, chunk * chunk_images,
                         std::min(g.batch, (chunk + 1) * chunk_images),
                         blocks * part / parts * Tile::kDotRows,
                         std::min(g.group_outputs(), blocks * (part + 1) / parts * Tile::kDotRows),
                         partials + chunk * weights + group * group_weights);
    }
  });
  parallel_for(0, weights, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partials[chunk * weights + i];
      dw[i] = convert<S>(sum);
    }
  });
}

}  // namespace

int64_t conv2d_workspace(Conv2dPass pass, DType dtype, const Conv2dGeometry& g) {
  if (pass != Conv2dPass::backward_weight) return 0;
  const int64_t chunk = chunk_images_of(g), chunks = (g.batch + chunk - 1) / chunk;
  return chunks * g.out_channels * g.taps() * (dtype == DType::f64 ? 8 : 4);
}

void conv2d_forward(DType dtype, const Conv2dGeometry& g, const void* x, const void* w, const void* bias,
                    void* y, void* /*workspace*/) {
  dispatch_floating(dtype, "conv2d", [&](auto tag) {
    using S = typename decltype(tag)::type;
    with_tile(g.group_outputs(), [&](auto tile) {
      forward<decltype(tile)>(g, static_cast<const S*>(x), static_cast<const S*>(w),
                              static_cast<const S*>(bias), static_cast<S*>(y));
    });
  });
}

void conv2d_backward_input(DType dtype, const Conv2dGeometry& g, const void* dout, const void* w, void* dx,
                           void* /*workspace*/) {
  dispatch_floating(dtype, "conv2d", [&](auto tag) {
    using S = typename decltype(tag)::type;
    with_tile(g.group_inputs(), [&](auto tile) {
      backward_input<decltype(tile)>(g, static_cast<const S*>(dout), static_cast<const S*>(w),
                                     static_cast<S*>(dx));
    });
  });
}

void conv2d_backward_weight(DType dtype, const Conv2dGeometry& g, const void* x, const void* dout, void* dw,
                            void* workspace) {
  dispatch_floating(dtype, "conv2d", [&](auto tag) {
    using S = typename decltype(tag)::type;
    with_tile(g.group_outputs(), [&](auto tile) {
      backward_weight<decltype(tile)>(g, static_cast<const S*>(x), static_cast<const S*>(dout),
                                      static_cast<S*>(dw), workspace);
    });
  });
}

}  // namespace ergon::kernels::cpu
