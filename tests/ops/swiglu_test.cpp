#include "ops/swiglu.h"

#include <cmath>

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "tests/support/reference.h"
#include "tests/support/threads.h"

namespace ergon::ops {
namespace {

using namespace ergon::test;
using Inputs = std::span<const Tensor>;

struct Expected {
  std::vector<double> value, tolerance;

  // magnitude: the sum of the absolute values of the terms that `exact` is made of.
  void add(double exact, double magnitude, double unit, DType dtype) {
    value.push_back(exact);
    tolerance.push_back(16 * unit * magnitude + 1.01 * unit_roundoff(dtype) * std::fabs(exact)
                        + underflow_error(dtype));
  }
};

struct Reference {
  Expected y, dgate, dup;
};

// vec_math.h's sigmoid is within 3 ulp; with the roundings of the products, 16 of each term are a bound.
Reference reference(const Tensor& gate, const Tensor& up, const Tensor& dout) {
  const std::vector<double> g = gate.to_vector<double>(), u = up.to_vector<double>(),
                            d = dout.to_vector<double>();
  const double unit = gate.dtype() == DType::f64 ? 0x1p-53 : 0x1p-24;
  Reference ref;
  for (std::size_t i = 0; i < g.size(); ++i) {
    const double s = 1 / (1 + std::exp(-g[i])), y = g[i] * s * u[i], slope = s * (1 + g[i] * (1 - s));
    ref.y.add(y, std::fabs(y), unit, gate.dtype());
    // 1 - s is off by an ulp of s, whatever its own size.
    ref.dgate.add(d[i] * u[i] * slope, std::fabs(d[i] * u[i]) * s * (1 + std::fabs(g[i])), unit,
                  gate.dtype());
    ref.dup.add(d[i] * g[i] * s, std::fabs(d[i] * g[i] * s), unit, gate.dtype());
  }
  return ref;
}

const Shape kShapes[] = {{1}, {31}, {5, 16}, {3, 17}, {2, 3, 65}, {4, 1025}, {0, 4}, {300, 128}};

TEST(Swiglu, MatchesFp64InEveryDtypeAndLayout) {
  for (DType dtype : kFloatingDTypes) {
    for (const Shape& shape : kShapes) {
      const Tensor gate = uniform(shape, {.dtype = dtype, .low = -20, .high = 20, .seed = 1});
      const Tensor up = uniform(shape, {.dtype = dtype, .seed = 2}),
                   dout = uniform(shape, {.dtype = dtype, .seed = 3});
      const Reference expected = reference(gate, up, dout);
      for (Layout layout : kLayouts) {
        SCOPED_TRACE(fmt::format("{} {} {}", name_of(dtype), shape, name_of(layout)));
        Tensor g = in_layout(gate, layout).set_requires_grad(true),
               u = in_layout(up, layout).set_requires_grad(true);
        const Tensor y = swiglu(g, u);
        EXPECT_TRUE(near_each(y, expected.y.value, expected.y.tolerance));
        y.backward(in_layout(dout, layout));
        EXPECT_TRUE(near_each(g.grad(), expected.dgate.value, expected.dgate.tolerance));
        EXPECT_TRUE(near_each(u.grad(), expected.dup.value, expected.dup.tolerance));
        // The packed form.
        Tensor packed = in_layout(cat({gate, up}, -1), layout).set_requires_grad(true);
        const Tensor z = swiglu(packed);
        EXPECT_TRUE(near_each(z, expected.y.value, expected.y.tolerance));
        z.backward(in_layout(dout, layout));
        const std::vector<Tensor> halves = chunk(packed.grad(), 2, -1);
        EXPECT_TRUE(near_each(halves[0], expected.dgate.value, expected.dgate.tolerance));
        EXPECT_TRUE(near_each(halves[1], expected.dup.value, expected.dup.tolerance));
      }
    }
  }
}

TEST(Swiglu, GradientsMatchDifferences) {
  const Tensor gate = uniform({3, 5}, {.dtype = DType::f64, .low = -4, .high = 4});
  const Tensor up = uniform({3, 5}, {.dtype = DType::f64, .seed = 2});
  EXPECT_TRUE(gradients_match([](Inputs in) { return swiglu(in[0], in[1]); }, {gate, up}));
  EXPECT_TRUE(gradients_match([](Inputs in) { return swiglu(in[0]); }, {cat({gate, up}, -1)}));
}

TEST(Swiglu, SameBitsForAnyNumberOfThreads) {
  const Tensor x = uniform({200, 700});
  const auto run = [&] {
    Tensor in = x.clone().set_requires_grad(true);
    swiglu(in).backward(ones({200, 350}, {.device = device()}));
    return in.grad();
  };
  EXPECT_TRUE(equal_bits(with_threads(3, run), with_threads(1, run)));
}

TEST(Swiglu, ErrorsNameShapesAndDtypes) {
  EXPECT_EQ(error_of([] {
              swiglu(zeros({2, 3}), zeros({2, 4}));
            }),
            "[swiglu] gate (2, 3) f32 and up (2, 4) f32: shapes and dtypes must be equal");
  EXPECT_EQ(error_of([] { swiglu(zeros({2}), zeros({2}, {DType::f64})); }),
            "[swiglu] gate (2,) f32 and up (2,) f64: shapes and dtypes must be equal");
  EXPECT_EQ(error_of([] {
              swiglu(zeros({2, 3}));
            }),
            "[swiglu] x (2, 3): its last dimension must be even, gate and up side by side");
}

}  // namespace
}  // namespace ergon::ops
