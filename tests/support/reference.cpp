#include "tests/support/reference.h"

#include <cmath>
#include <cstdlib>
#include <limits>

#include "core/autograd.h"

namespace ergon::test {

Device device() {
  static const Device chosen = [] {
    const char* name = std::getenv("ERGON_TEST_DEVICE");
    return name == nullptr ? Device::cpu() : Device::parse(name);
  }();
  return chosen;
}

Tensor uniform(const Shape& shape, const RandomOptions& options) {
  if (options.dtype == DType::boolean) {
    Generator generator(options.seed);
    return randint(0, 2, shape, {DType::boolean, device()}, generator);
  }
  if (!is_floating_point(options.dtype)) return integers(shape, options);
  Generator generator(options.seed);
  std::vector<double> values = rand(shape, {DType::f64}, generator).to_vector<double>();
  for (double& value : values) value = options.low + (options.high - options.low) * value;
  return from_vector(values, shape, {options.dtype, device()});
}

Tensor integers(const Shape& shape, const RandomOptions& options) {
  Generator generator(options.seed);
  return randint(static_cast<std::int64_t>(options.low), static_cast<std::int64_t>(options.high), shape,
                 {options.dtype, device()}, generator);
}

Tensor poisoned(const Shape& shape, DType dtype) {
  return full(shape, is_floating_point(dtype) ? std::numeric_limits<double>::quiet_NaN() : 99,
              {dtype, device()});
}

const char* name_of(Layout layout) {
  switch (layout) {
    case Layout::contiguous:
      return "contiguous";
    case Layout::transposed:
      return "transposed";
    case Layout::strided:
      return "strided";
    case Layout::misaligned:
      return "misaligned";
  }
  return "unknown";
}

Tensor in_layout(const Tensor& tensor, Layout layout) {
  NoGradGuard no_grad;
  if (layout == Layout::contiguous) return tensor.clone();
  const Shape& shape = tensor.shape();
  Tensor result;
  if (layout == Layout::transposed && tensor.dim() >= 2) {
    Shape swapped = shape;
    std::swap(swapped[tensor.dim() - 2], swapped[tensor.dim() - 1]);
    result = poisoned(swapped, tensor.dtype()).transpose(-2, -1);
  } else if (layout == Layout::misaligned) {
    result = poisoned({tensor.numel() + 1}, tensor.dtype()).slice(0, 1, tensor.numel() + 1).view(shape);
  } else if (tensor.dim() == 0) {
    result = poisoned({2}, tensor.dtype()).select(0, 1);
  } else {
    Shape doubled = shape;
    doubled.back() *= 2;
    result = poisoned(doubled, tensor.dtype()).slice(-1, 0, doubled.back(), 2);
  }
  result.copy_(tensor);
  return result.detach();
}

double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 0x1p-24;
    case DType::bf16:
      return 0x1p-8;
    case DType::f16:
      return 0x1p-11;
    case DType::f64:
      return 0x1p-53;
    default:
      return 0;
  }
}

double underflow_error(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 0x1p-150;
    case DType::bf16:
      return 0x1p-134;
    case DType::f16:
      return 0x1p-25;
    default:
      return 0;
  }
}

std::vector<double> map(const Tensor& x, const std::function<double(double)>& f) {
  std::vector<double> values = x.to_vector<double>();
  for (double& value : values) value = f(value);
  return values;
}

std::vector<double> map(const Tensor& a, const Tensor& b, const std::function<double(double, double)>& f) {
  const Shape shape = broadcast_shapes(a.shape(), b.shape(), "map");
  std::vector<double> values = a.detach().expand(shape).to_vector<double>();
  const std::vector<double> others = b.detach().expand(shape).to_vector<double>();
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = f(values[i], others[i]);
  return values;
}

testing::AssertionResult near_each(const Tensor& got, std::span<const double> expected,
                                   std::span<const double> tolerances) {
  const std::vector<double> values = got.to_vector<double>();
  if (values.size() != expected.size() || values.size() != tolerances.size()) {
    return testing::AssertionFailure()
           << to_string(got.shape()) << " has " << values.size() << " elements, expected " << expected.size();
  }
  double worst_excess = 0;
  std::size_t worst = 0, failures = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const bool same = values[i] == expected[i] || (std::isnan(values[i]) && std::isnan(expected[i]));
    if (same) continue;
    const double error = std::fabs(values[i] - expected[i]);
    if (std::isfinite(expected[i]) && error <= tolerances[i]) continue;
    // How many times too large; anything with NaN or infinity is infinitely wrong.
    double excess = error / tolerances[i];
    if (!std::isfinite(excess)) excess = std::numeric_limits<double>::infinity();
    if (failures++ == 0 || excess > worst_excess) worst_excess = excess, worst = i;
  }
  if (failures == 0) return testing::AssertionSuccess();
  std::string index;
  std::size_t remaining = worst;
  for (int dim = got.dim() - 1; dim >= 0; --dim) {
    const auto size = static_cast<std::size_t>(got.shape()[dim]);
    index = std::to_string(remaining % size) + (index.empty() ? "" : ", ") + index;
    remaining /= size;
  }
  return testing::AssertionFailure() << fmt::format(
             "{} of {} elements of {} {} are off; worst at ({}): got {}, expected {}, error {:.3g}, "
             "tolerance {:.3g}",
             failures, values.size(), ergon::name_of(got.dtype()), got.shape(), index, values[worst],
             expected[worst], std::fabs(values[worst] - expected[worst]), tolerances[worst]);
}

testing::AssertionResult near(const Tensor& got, std::span<const double> expected, Tolerance tolerance) {
  std::vector<double> tolerances(expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    tolerances[i] = tolerance.atol + tolerance.rtol * std::fabs(expected[i]);
  }
  return near_each(got, expected, tolerances);
}

testing::AssertionResult near(const Tensor& got, const Tensor& expected, Tolerance tolerance) {
  if (got.shape() != expected.shape()) {
    return testing::AssertionFailure()
           << "got shape " << to_string(got.shape()) << ", expected " << to_string(expected.shape());
  }
  return near(got, expected.to_vector<double>(), tolerance);
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

testing::AssertionResult gradients_match(const std::function<Tensor(std::span<const Tensor>)>& function,
                                         const std::vector<Tensor>& inputs,
                                         const autograd::GradcheckOptions& options) {
  for (Layout layout : kLayouts) {
    std::vector<Tensor> leaves;
    for (const Tensor& input : inputs) {
      leaves.push_back(in_layout(input, layout));
      if (input.dtype() == DType::f64) leaves.back().set_requires_grad(true);
    }
    const std::string error = error_of([&] { autograd::gradcheck(function, leaves, options); });
    if (error != "no error") return testing::AssertionFailure() << name_of(layout) << ": " << error;
  }
  return testing::AssertionSuccess();
}

}  // namespace ergon::test
