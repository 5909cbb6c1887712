#include "kernels/pooling.h"

#include <algorithm>
#include <vector>

#include "core/convert.h"
#include "core/half.h"
#include "core/parallel.h"
#include "kernels/cpu/rows.h"

namespace ergon::kernels::cpu {
namespace {

using std::int64_t;

// Positions [begin, end) of one dimension that window `i` covers inside the input, and how many it counts.
struct Window {
  Window(const Pool2dGeometry& g, int d, int64_t i) {
    const int64_t first = i * g.stride[d] - g.padding[d];
    const int64_t last = std::min(first + g.kernel[d], g.input[d] + g.padding[d]);
    begin = std::max<int64_t>(first, 0);
    end = std::min(last, g.input[d]);
    counted = g.count_padding ? last - first : end - begin;
  }
  int64_t begin, end, counted;
};

// Calls f(window of rows, window of columns, output index) for every output of a plane.
template <class F>
void for_each_window(const Pool2dGeometry& g, const F& f) {
  int64_t at = 0;
  for (int64_t i = 0; i < g.output[0]; ++i) {
    const Window rows(g, 0, i);
    for (int64_t j = 0; j < g.output[1]; ++j) f(rows, Window(g, 1, j), at++);
  }
}

// Calls f(plane) for every plane, shared among threads.
template <class F>
void for_each_plane(const Pool2dGeometry& g, const F& make) {
  const int64_t work = g.output[0] * g.output[1] * g.kernel[0] * g.kernel[1] + g.input[0] * g.input[1];
  parallel_for(0, g.planes, row_grain(work), [&](int64_t begin, int64_t end) {
    auto f = make();
    for (int64_t plane = begin; plane < end; ++plane) f(plane);
  });
}

int64_t inputs(const Pool2dGeometry& g) { return g.input[0] * g.input[1]; }
int64_t outputs(const Pool2dGeometry& g) { return g.output[0] * g.output[1]; }
template <class T>
std::vector<T> plane_buffer(int64_t size) {
  return std::vector<T>(static_cast<std::size_t>(size));
}

template <class S>
void max_forward(const Pool2dGeometry& g, const S* x, S* y, std::int32_t* index) {
  using T = accumulate_t<S>;
  for_each_plane(g, [&] {
    return [&, buffer = plane_buffer<T>(inputs(g))](int64_t plane) mutable {
      convert_run(x + plane * inputs(g), buffer.data(), inputs(g));
      const T* values = buffer.data();
      for_each_window(g, [&](const Window& rows, const Window& cols, int64_t at) {
        int64_t best = rows.begin * g.input[1] + cols.begin;
        for (int64_t r = rows.begin; r < rows.end; ++r) {
          for (int64_t c = cols.begin; c < cols.end; ++c) {
            const T value = values[r * g.input[1] + c], so_far = values[best];
            if (value > so_far || (value != value && so_far == so_far)) best = r * g.input[1] + c;
          }
        }
        y[plane * outputs(g) + at] = x[plane * inputs(g) + best];
        index[plane * outputs(g) + at] = static_cast<std::int32_t>(best);
      });
    };
  });
}

template <class S>
void max_backward(const Pool2dGeometry& g, const S* dout, const std::int32_t* index, S* dx) {
  using T = accumulate_t<S>;
  for_each_plane(g, [&] {
    return [&, buffer = plane_buffer<T>(inputs(g))](int64_t plane) mutable {
      std::fill(buffer.begin(), buffer.end(), T(0));
      for (int64_t i = plane * outputs(g); i < (plane + 1) * outputs(g); ++i) {
        buffer[static_cast<std::size_t>(index[i])] += convert<T>(dout[i]);
      }
      convert_run(buffer.data(), dx + plane * inputs(g), inputs(g));
    };
  });
}

template <class S>
void avg_forward(const Pool2dGeometry& g, const S* x, S* y) {
  using T = accumulate_t<S>;
  for_each_plane(g, [&] {
    return [&, buffer = plane_buffer<T>(inputs(g))](int64_t plane) mutable {
      convert_run(x + plane * inputs(g), buffer.data(), inputs(g));
      const T* values = buffer.data();
      for_each_window(g, [&](const Window& rows, const Window& cols, int64_t at) {
        T sum = 0;
        for (int64_t r = rows.begin; r < rows.end; ++r) {
          for (int64_t c = cols.begin; c < cols.end; ++c) sum += values[r * g.input[1] + c];
        }
        y[plane * outputs(g) + at] = convert<S>(sum / static_cast<T>(rows.counted * cols.counted));
      });
    };
  });
}

template <class S>
void avg_backward(const Pool2dGeometry& g, const S* dout, S* dx) {
  using T = accumulate_t<S>;
  for_each_plane(g, [&] {
    return [&, buffer = plane_buffer<T>(inputs(g))](int64_t plane) mutable {
      std::fill(buffer.begin(), buffer.end(), T(0));
      T* values = buffer.data();
      for_each_window(g, [&](const Window& rows, const Window& cols, int64_t at) {
        const T share =
            convert<T>(dout[plane * outputs(g) + at]) / static_cast<T>(rows.counted * cols.counted);
        for (int64_t r = rows.begin; r < rows.end; ++r) {
          for (int64_t c = cols.begin; c < cols.end; ++c) values[r * g.input[1] + c] += share;
        }
      });
      convert_run(values, dx + plane * inputs(g), inputs(g));
    };
  });
}

}  // namespace

void max_pool2d_forward(DType dtype, const Pool2dGeometry& g, const void* x, void* y, std::int32_t* index) {
  dispatch_floating(dtype, "max_pool2d", [&](auto tag) {
    using S = typename decltype(tag)::type;
    max_forward(g, static_cast<const S*>(x), static_cast<S*>(y), index);
  });
}

void max_pool2d_backward(DType dtype, const Pool2dGeometry& g, const void* dout, const std::int32_t* index,
                         void* dx) {
  dispatch_floating(dtype, "max_pool2d", [&](auto tag) {
    using S = typename decltype(tag)::type;
    max_backward(g, static_cast<const S*>(dout), index, static_cast<S*>(dx));
  });
}

void avg_pool2d_forward(DType dtype, const Pool2dGeometry& g, const void* x, void* y) {
  dispatch_floating(dtype, "avg_pool2d", [&](auto tag) {
    using S = typename decltype(tag)::type;
    avg_forward(g, static_cast<const S*>(x), static_cast<S*>(y));
  });
}

void avg_pool2d_backward(DType dtype, const Pool2dGeometry& g, const void* dout, void* dx) {
  dispatch_floating(dtype, "avg_pool2d", [&](auto tag) {
    using S = typename decltype(tag)::type;
    avg_backward(g, static_cast<const S*>(dout), static_cast<S*>(dx));
  });
}

}  // namespace ergon::kernels::cpu
