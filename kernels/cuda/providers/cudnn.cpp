#include "kernels/cuda/providers/cudnn.h"

#if __has_include(<cudnn.h>)
#include <array>
#include <optional>
#include <string>

#include "core/log.h"
#include "kernels/cuda/providers/cudnn_session.h"

namespace ergon::kernels::cuda {
namespace {

cudnnDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return CUDNN_DATA_BFLOAT16;
    case DType::f16:
      return CUDNN_DATA_HALF;
    case DType::f64:
      return CUDNN_DATA_DOUBLE;
    default:
      return CUDNN_DATA_FLOAT;
  }
}

// f32 at fp32's precision: cuDNN's default would round it to TF32.
cudnnMathType_t math_type(DType dtype) { return size_of(dtype) == 2 ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH; }

class Tensor4d {
 public:
  Tensor4d(DType dtype, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
    ERGON_CUDNN_CHECK("conv2d", cudnnCreateTensorDescriptor, &desc_);
    ERGON_CUDNN_CHECK("conv2d", cudnnSetTensor4dDescriptor, desc_, CUDNN_TENSOR_NCHW, data_type(dtype),
                      static_cast<int>(n), static_cast<int>(c), static_cast<int>(h), static_cast<int>(w));
  }
  ~Tensor4d() { ERGON_CUDNN(cudnnDestroyTensorDescriptor)(desc_); }
  Tensor4d(const Tensor4d&) = delete;
  Tensor4d& operator=(const Tensor4d&) = delete;
  cudnnTensorDescriptor_t get() const { return desc_; }

 private:
  cudnnTensorDescriptor_t desc_ = nullptr;
};

class Filter4d {
 public:
  Filter4d(DType dtype, const Conv2dGeometry& g) {
    ERGON_CUDNN_CHECK("conv2d", cudnnCreateFilterDescriptor, &desc_);
    ERGON_CUDNN_CHECK("conv2d", cudnnSetFilter4dDescriptor, desc_, data_type(dtype), CUDNN_TENSOR_NCHW,
                      static_cast<int>(g.out_channels), static_cast<int>(g.group_inputs()),
                      static_cast<int>(g.kernel[0]), static_cast<int>(g.kernel[1]));
  }
  ~Filter4d() { ERGON_CUDNN(cudnnDestroyFilterDescriptor)(desc_); }
  Filter4d(const Filter4d&) = delete;
  Filter4d& operator=(const Filter4d&) = delete;
  cudnnFilterDescriptor_t get() const { return desc_; }

 private:
  cudnnFilterDescriptor_t desc_ = nullptr;
};

class Convolution2d {
 public:
  Convolution2d(DType dtype, const Conv2dGeometry& g) {
    const auto pair = [](const std::array<std::int64_t, 2>& values) {
      return std::array<int, 2>{static_cast<int>(values[0]), static_cast<int>(values[1])};
    };
    const auto padding = pair(g.padding), stride = pair(g.stride), dilation = pair(g.dilation);
    ERGON_CUDNN_CHECK("conv2d", cudnnCreateConvolutionDescriptor, &desc_);
    ERGON_CUDNN_CHECK("conv2d", cudnnSetConvolution2dDescriptor, desc_, padding[0], padding[1], stride[0],
                      stride[1], dilation[0], dilation[1], CUDNN_CROSS_CORRELATION,
                      dtype == DType::f64 ? CUDNN_DATA_DOUBLE : CUDNN_DATA_FLOAT);
    ERGON_CUDNN_CHECK("conv2d", cudnnSetConvolutionGroupCount, desc_, static_cast<int>(g.groups));
    ERGON_CUDNN_CHECK("conv2d", cudnnSetConvolutionMathType, desc_, math_type(dtype));
  }
  ~Convolution2d() { ERGON_CUDNN(cudnnDestroyConvolutionDescriptor)(desc_); }
  Convolution2d(const Convolution2d&) = delete;
  Convolution2d& operator=(const Convolution2d&) = delete;
  cudnnConvolutionDescriptor_t get() const { return desc_; }

 private:
  cudnnConvolutionDescriptor_t desc_ = nullptr;
};

struct Descriptors {
  Tensor4d x, y;
  Filter4d w;
  Convolution2d convolution;

  Descriptors(DType dtype, const Conv2dGeometry& g)
      : x(dtype, g.batch, g.in_channels, g.input[0], g.input[1]),
        y(dtype, g.batch, g.out_channels, g.output[0], g.output[1]),
        w(dtype, g),
        convolution(dtype, g) {}
};

// 1 and 0 in the type that cuDNN wants them in.
struct Scales {
  double values64[2] = {1, 0};
  float values32[2] = {1, 0};
  bool f64;

  explicit Scales(DType dtype) : f64(dtype == DType::f64) {}
  const void* one() const { return f64 ? static_cast<const void*>(&values64[0]) : &values32[0]; }
  const void* zero() const { return f64 ? static_cast<const void*>(&values64[1]) : &values32[1]; }
};

// The first of the algorithms that list(count, &found, algorithms) gives, the fastest first.
template <class Algorithm, class List>
std::optional<Algorithm> choose(DType dtype, const char* call, const List& list) {
  std::array<Algorithm, 8> algorithms{};
  int found = 0;
  const cudnnStatus_t status = list(static_cast<int>(algorithms.size()), &found, algorithms.data());
  if (status == CUDNN_STATUS_NOT_SUPPORTED) return std::nullopt;
  check_cudnn(status, "conv2d", call);
  for (int i = 0; i < found; ++i) {
    const Algorithm& algorithm = algorithms[static_cast<std::size_t>(i)];
    if (algorithm.status == CUDNN_STATUS_SUCCESS && algorithm.determinism == CUDNN_DETERMINISTIC
        && algorithm.mathType == math_type(dtype))
      return algorithm;
  }
  SPDLOG_LOGGER_DEBUG(&log(), "[conv2d] {}: no deterministic algorithm of full precision", call);
  return std::nullopt;
}

std::optional<cudnnConvolutionFwdAlgoPerf_t> forward_algorithm(DType dtype, cudnnHandle_t handle,
                                                               const Descriptors& d) {
  return choose<cudnnConvolutionFwdAlgoPerf_t>(
      dtype, "cudnnGetConvolutionForwardAlgorithm_v7", [&](int count, int* found, auto* algorithms) {
        return ERGON_CUDNN(cudnnGetConvolutionForwardAlgorithm_v7)(
            handle, d.x.get(), d.w.get(), d.convolution.get(), d.y.get(), count, found, algorithms);
      });
}

std::optional<cudnnConvolutionBwdDataAlgoPerf_t> backward_data_algorithm(DType dtype, cudnnHandle_t handle,
                                                                         const Descriptors& d) {
  return choose<cudnnConvolutionBwdDataAlgoPerf_t>(
      dtype, "cudnnGetConvolutionBackwardDataAlgorithm_v7", [&](int count, int* found, auto* algorithms) {
        return ERGON_CUDNN(cudnnGetConvolutionBackwardDataAlgorithm_v7)(
            handle, d.w.get(), d.y.get(), d.convolution.get(), d.x.get(), count, found, algorithms);
      });
}

std::optional<cudnnConvolutionBwdFilterAlgoPerf_t> backward_filter_algorithm(DType dtype,
                                                                             cudnnHandle_t handle,
                                                                             const Descriptors& d) {
  return choose<cudnnConvolutionBwdFilterAlgoPerf_t>(
      dtype, "cudnnGetConvolutionBackwardFilterAlgorithm_v7", [&](int count, int* found, auto* algorithms) {
        return ERGON_CUDNN(cudnnGetConvolutionBackwardFilterAlgorithm_v7)(
            handle, d.x.get(), d.y.get(), d.convolution.get(), d.w.get(), count, found, algorithms);
      });
}

}  // namespace

bool cudnn_forward(DType dtype, const Conv2dGeometry& g, const void* x, const void* w, const void* bias,
                   void* y, void* workspace) {
  if (g.batch == 0) return false;
  const CudnnSession session("conv2d");
  const Descriptors d(dtype, g);
  const auto algorithm = forward_algorithm(dtype, session.handle(), d);
  if (!algorithm) return false;
  const Scales scales(dtype);
  ERGON_CUDNN_CHECK("conv2d", cudnnConvolutionForward, session.handle(), scales.one(), d.x.get(), x,
                    d.w.get(), w, d.convolution.get(), algorithm->algo, workspace, algorithm->memory,
                    scales.zero(), d.y.get(), y);
  if (bias != nullptr) {
    const Tensor4d of_bias(dtype, 1, g.out_channels, 1, 1);
    ERGON_CUDNN_CHECK("conv2d", cudnnAddTensor, session.handle(), scales.one(), of_bias.get(), bias,
                      scales.one(), d.y.get(), y);
  }
  return true;
}

bool cudnn_backward_input(DType dtype, const Conv2dGeometry& g, const void* dout, const void* w, void* dx,
                          void* workspace) {
  if (g.batch == 0) return false;
  const CudnnSession session("conv2d");
  const Descriptors d(dtype, g);
  const auto algorithm = backward_data_algorithm(dtype, session.handle(), d);
  if (!algorithm) return false;
  const Scales scales(dtype);
  ERGON_CUDNN_CHECK("conv2d", cudnnConvolutionBackwardData, session.handle(), scales.one(), d.w.get(), w,
                    d.y.get(), dout, d.convolution.get(), algorithm->algo, workspace, algorithm->memory,
                    scales.zero(), d.x.get(), dx);
  return true;
}

bool cudnn_backward_weight(DType dtype, const Conv2dGeometry& g, const void* x, const void* dout, void* dw,
                           void* workspace) {
  if (g.batch == 0) return false;
  const CudnnSession session("conv2d");
  const Descriptors d(dtype, g);
  const auto algorithm = backward_filter_algorithm(dtype, session.handle(), d);
  if (!algorithm) return false;
  const Scales scales(dtype);
  ERGON_CUDNN_CHECK("conv2d", cudnnConvolutionBackwardFilter, session.handle(), scales.one(), d.x.get(), x,
                    d.y.get(), dout, d.convolution.get(), algorithm->algo, workspace, algorithm->memory,
                    scales.zero(), d.w.get(), dw);
  return true;
}

std::int64_t cudnn_workspace(Conv2dPass pass, DType dtype, const Conv2dGeometry& g) {
  if (g.batch == 0) return 0;
  const CudnnSession session("conv2d");
  const Descriptors d(dtype, g);
  const auto memory = [](const auto& algorithm) {
    return algorithm ? static_cast<std::int64_t>(algorithm->memory) : 0;
  };
  switch (pass) {
    case Conv2dPass::forward:
      return memory(forward_algorithm(dtype, session.handle(), d));
    case Conv2dPass::backward_input:
      return memory(backward_data_algorithm(dtype, session.handle(), d));
    default:
      return memory(backward_filter_algorithm(dtype, session.handle(), d));
  }
}

}  // namespace ergon::kernels::cuda

#else

#include "core/error.h"

namespace ergon::kernels::cuda {
namespace {

[[noreturn]] void fail() {
  ERGON_FAIL("[conv2d] cudnn: Ergon was built without cudnn.h; install cuDNN 9 and build it again");
}

}  // namespace

bool cudnn_forward(DType, const Conv2dGeometry&, const void*, const void*, const void*, void*, void*) {
  fail();
}
bool cudnn_backward_input(DType, const Conv2dGeometry&, const void*, const void*, void*, void*) { fail(); }
bool cudnn_backward_weight(DType, const Conv2dGeometry&, const void*, const void*, void*, void*) { fail(); }
std::int64_t cudnn_workspace(Conv2dPass, DType, const Conv2dGeometry&) { fail(); }

}  // namespace ergon::kernels::cuda

#endif
