// Tensor's factories.

#include <cmath>
#include <numbers>
#include <utility>

#include "core/copy.h"
#include "core/half.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "core/tensor_impl.h"

namespace ergon {

Tensor empty(const Shape& shape, const TensorOptions& options) {
  check_available(options.device);
  for (std::int64_t size : shape)
    ERGON_CHECK(size >= 0, "[empty] shape {}: sizes must not be negative", shape);
  std::int64_t bytes = 0;
  ERGON_CHECK(!__builtin_mul_overflow(numel(shape), size_of(options.dtype), &bytes),
              "[empty] shape {} has more than 2^63 bytes", shape);
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = std::make_shared<Storage>(options.device, bytes);
  impl->shape = shape;
  impl->strides = contiguous_strides(shape);
  impl->dtype = options.dtype;
  Tensor tensor(std::move(impl));
  if (options.requires_grad) tensor.set_requires_grad(true);
  return tensor;
}

namespace {

// An empty tensor that `write` fills before it starts to require a gradient.
template <class Write>
Tensor make(const Shape& shape, TensorOptions options, Write write) {
  const bool requires_grad = std::exchange(options.requires_grad, false);
  Tensor tensor = empty(shape, options);
  write(tensor);
  return requires_grad ? tensor.set_requires_grad(true) : tensor;
}

// write(word, i) gives element i of an f32 tensor from word i of the generator's stream.
template <class Element>
Tensor make_random(const Shape& shape, const TensorOptions& options, Generator& generator,
                   int words_per_element, Element element) {
  return make(shape, options, [&](Tensor& tensor) {
    const std::int64_t count = tensor.numel();
    const PhiloxState state = generator.reserve(count * words_per_element);
    const bool direct = options.dtype == DType::f64 && options.device.is_cpu();
    const Tensor values =
        direct ? tensor : empty(shape, {options.dtype == DType::f64 ? DType::f64 : DType::f32});
    dispatch_floating(values.dtype(), "random", [&](auto tag) {
      using T = typename decltype(tag)::type;
      T* out = static_cast<T*>(values.data_ptr());
      const std::int64_t per_block = 4 / words_per_element;
      const std::int64_t blocks = (count + per_block - 1) / per_block;
      parallel_for(0, blocks, 4096, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t block = begin; block < end; ++block) {
          const auto words = philox4x32(state.seed, state.offset + static_cast<std::uint64_t>(block));
          for (std::int64_t k = 0; k < per_block && block * per_block + k < count; ++k) {
            out[block * per_block + k] = T(element(words.data() + k * words_per_element));
          }
        }
      });
    });
    if (!values.is_same(tensor)) detail::copy(tensor, values);
  });
}

}  // namespace

Tensor zeros(const Shape& shape, const TensorOptions& options) { return full(shape, 0, options); }
Tensor ones(const Shape& shape, const TensorOptions& options) { return full(shape, 1, options); }

Tensor full(const Shape& shape, double value, const TensorOptions& options) {
  return make(shape, options, [&](Tensor& tensor) { detail::fill(tensor, value); });
}

Tensor empty_like(const Tensor& tensor) { return empty(tensor.shape(), tensor.options()); }
Tensor zeros_like(const Tensor& tensor) { return zeros(tensor.shape(), tensor.options()); }

Tensor arange(std::int64_t start, std::int64_t end, std::int64_t step, const TensorOptions& options) {
  ERGON_CHECK(step != 0, "[arange] step is 0");
  const std::int64_t count = step > 0 ? std::max<std::int64_t>((end - start + step - 1) / step, 0)
                                      : std::max<std::int64_t>((start - end - step - 1) / -step, 0);
  std::vector<std::int64_t> values(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) values[static_cast<std::size_t>(i)] = start + i * step;
  return from_vector(values, {count}, options);
}

Tensor rand(const Shape& shape, const TensorOptions& options, Generator& generator) {
  return make_random(shape, options, generator, 1,
                     [](const std::uint32_t* words) { return uniform_from_bits(words[0]); });
}

Tensor randn(const Shape& shape, const TensorOptions& options, Generator& generator) {
  return make_random(shape, options, generator, 2, [](const std::uint32_t* words) {
    const double radius = std::sqrt(-2 * std::log(1.0 - uniform_from_bits(words[0])));  // 1 - u is never 0
    return radius * std::cos(2 * std::numbers::pi * uniform_from_bits(words[1]));
  });
}

Tensor randint(std::int64_t low, std::int64_t high, const Shape& shape, const TensorOptions& options,
               Generator& generator) {
  ERGON_CHECK(low < high, "[randint] low {} must be below high {}", low, high);
  std::vector<std::int64_t> values(static_cast<std::size_t>(numel(shape)));
  for (std::int64_t& value : values) {
    value = low + static_cast<std::int64_t>(generator.below(static_cast<std::uint64_t>(high - low)));
  }
  return from_vector(values, shape, options);
}

template <class T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape, const TensorOptions& options) {
  ERGON_CHECK(static_cast<std::int64_t>(values.size()) == numel(shape),
              "[from_vector] {} values for shape {}", values.size(), shape);
  return make(shape, options, [&](Tensor& tensor) {
    if constexpr (std::is_same_v<T, bool>) {
      const Tensor host = options.device.is_cpu() && options.dtype == DType::boolean
                              ? tensor
                              : empty(shape, {DType::boolean});
      bool* out = host.data<bool>();
      for (std::size_t i = 0; i < values.size(); ++i) out[i] = values[i];
      if (!host.is_same(tensor)) detail::copy(tensor, host);
    } else {
      detail::copy(tensor, from_blob(const_cast<T*>(values.data()), shape, dtype_of<T>(), nullptr));
    }
  });
}

#define ERGON_INSTANTIATE(T) \
  template Tensor from_vector<T>(const std::vector<T>&, const Shape&, const TensorOptions&);
ERGON_INSTANTIATE(float)
ERGON_INSTANTIATE(double)
ERGON_INSTANTIATE(std::int8_t)
ERGON_INSTANTIATE(std::uint8_t)
ERGON_INSTANTIATE(std::int32_t)
ERGON_INSTANTIATE(std::int64_t)
ERGON_INSTANTIATE(bool)
#undef ERGON_INSTANTIATE

Tensor from_blob(void* data, const Shape& shape, DType dtype, std::shared_ptr<void> owner) {
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = std::make_shared<Storage>(data, numel(shape) * size_of(dtype), std::move(owner));
  impl->shape = shape;
  impl->strides = contiguous_strides(shape);
  impl->dtype = dtype;
  return Tensor(std::move(impl));
}

}  // namespace ergon
