#include "kernels/cuda/providers/cudnn.h"

#if __has_include(<cudnn.h>)
#include <array>
#include <optional>
#include <string>

#include "core/log.h"
#include "kernels/cuda/providers/cudnn_session.h"

namespace ergon::kernels::cuda {
namespace {

struct Api {
  decltype(&cudnnCreateTensorDescriptor) create_tensor;
  decltype(&cudnnSetTensor4dDescriptor) set_tensor;
  decltype(&cudnnDestroyTensorDescriptor) destroy_tensor;
  decltype(&cudnnCreateFilterDescriptor) create_filter;
  decltype(&cudnnSetFilter4dDescriptor) set_filter;
  decltype(&cudnnDestroyFilterDescriptor) destroy_filter;
  decltype(&cudnnCreateConvolutionDescriptor) create_convolution;
  decltype(&cudnnSetConvolution2dDescriptor) set_convolution;
  decltype(&cudnnSetConvolutionGroupCount) set_groups;
  decltype(&cudnnSetConvolutionMathType) set_math;
  decltype(&cudnnDestroyConvolutionDescriptor) destroy_convolution;
  decltype(&cudnnGetConvolutionForwardAlgorithm_v7) forward_algorithms;
  decltype(&cudnnGetConvolutionBackwardDataAlgorithm_v7) backward_data_algorithms;
  decltype(&cudnnGetConvolutionBackwardFilterAlgorithm_v7) backward_filter_algorithms;
  decltype(&cudnnConvolutionForward) forward;
  decltype(&cudnnConvolutionBackwardData) backward_data;
  decltype(&cudnnConvolutionBackwardFilter) backward_filter;
  decltype(&cudnnAddTensor) add;

  Api() {
    const Library& library = cudnn_library();
    library.find("cudnnCreateTensorDescriptor", create_tensor);
    library.find("cudnnSetTensor4dDescriptor", set_tensor);
    library.find("cudnnDestroyTensorDescriptor", destroy_tensor);
    library.find("cudnnCreateFilterDescriptor", create_filter);
    library.find("cudnnSetFilter4dDescriptor", set_filter);
    library.find("cudnnDestroyFilterDescriptor", destroy_filter);
    library.find("cudnnCreateConvolutionDescriptor", create_convolution);
    library.find("cudnnSetConvolution2dDescriptor", set_convolution);
    library.find("cudnnSetConvolutionGroupCount", set_groups);
    library.find("cudnnSetConvolutionMathType", set_math);
    library.find("cudnnDestroyConvolutionDescriptor", destroy_convolution);
    library.find("cudnnGetConvolutionForwardAlgorithm_v7", forward_algorithms);
    library.find("cudnnGetConvolutionBackwardDataAlgorithm_v7", backward_data_algorithms);
    library.find("cudnnGetConvolutionBackwardFilterAlgorithm_v7", backward_filter_algorithms);
    library.find("cudnnConvolutionForward", forward);
    library.find("cudnnConvolutionBackwardData", backward_data);
    library.find("cudnnConvolutionBackwardFilter", backward_filter);
    library.find("cudnnAddTensor", add);
  }
};

const Api& api() {
  static const Api functions;
  return functions;
}

void check(cudnnStatus_t status, const char* call) { check_cudnn(status, "conv2d", call); }

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
    check(api().create_tensor(&desc_), "cudnnCreateTensorDescriptor");
    check(api().set_tensor(desc_, CUDNN_TENSOR_NCHW, data_type(dtype), static_cast<int>(n),
                           static_cast<int>(c), static_cast<int>(h), static_cast<int>(w)),
          "cudnnSetTensor4dDescriptor");
  }
  ~Tensor4d() { api().destroy_tensor(desc_); }
  Tensor4d(const Tensor4d&) = delete;
  Tensor4d& operator=(const Tensor4d&) = delete;
  cudnnTensorDescriptor_t get() const { return desc_; }

 private:
  cudnnTensorDescriptor_t desc_ = nullptr;
};

class Filter4d {
 public:
  Filter4d(DType dtype, const Conv2dGeometry& g) {
    check(api().create_filter(&desc_), "cudnnCreateFilterDescriptor");
    check(api().set_filter(desc_, data_type(dtype), CUDNN_TENSOR_NCHW, static_cast<int>(g.out_channels),
                           static_cast<int>(g.group_inputs()), static_cast<int>(g.kernel[0]),
                           static_cast<int>(g.kernel[1])),
          "cudnnSetFilter4dDescriptor");
  }
  ~Filter4d() { api().destroy_filter(desc_); }
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
    check(api().create_convolution(&desc_), "cudnnCreateConvolutionDescriptor");
    check(api().set_convolution(desc_, padding[0], padding[1], stride[0], stride[1], dilation[0], dilation[1],
                                CUDNN_CROSS_CORRELATION,
                                dtype == DType::f64 ? CUDNN_DATA_DOUBLE : CUDNN_DATA_FLOAT),
          "cudnnSetConvolution2dDescriptor");
    check(api().set_groups(desc_, static_cast<int>(g.groups)), "cudnnSetConvolutionGroupCount");
    check(api().set_math(desc_, math_type(dtype)), "cudnnSetConvolutionMathType");
  }
  ~Convolution2d() { api().destroy_convolution(desc_); }
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
  check(status, call);
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
        return api().forward_algorithms(handle, d.x.get(), d.w.get(), d.convolution.get(), d.y.get(), count,
                                        found, algorithms);
      });
}

std::optional<cudnnConvolutionBwdDataAlgoPerf_t> backward_data_algorithm(DType dtype, cudnnHandle_t handle,
                                                                         const Descriptors& d) {
  return choose<cudnnConvolutionBwdDataAlgoPerf_t>(
      dtype, "cudnnGetConvolutionBackwardDataAlgorithm_v7", [&](int count, int* found, auto* algorithms) {
        return api().backward_data_algorithms(handle, d.w.get(), d.y.get(), d.convolution.get(), d.x.get(),
                                              count, found, algorithms);
      });
}

std::optional<cudnnConvolutionBwdFilterAlgoPerf_t> backward_filter_algorithm(DType dtype,
                                                                             cudnnHandle_t handle,
                                                                             const Descriptors& d) {
  return choose<cudnnConvolutionBwdFilterAlgoPerf_t>(
      dtype, "cudnnGetConvolutionBackwardFilterAlgorithm_v7", [&](int count, int* found, auto* algorithms) {
        return api().backward_filter_algorithms(handle, d.x.get(), d.y.get(), d.convolution.get(), d.w.get(),
                                                count, found, algorithms);
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
  check(api().forward(session.handle(), scales.one(), d.x.get(), x, d.w.get(), w, d.convolution.get(),
                      algorithm->algo, workspace, algorithm->memory, scales.zero(), d.y.get(), y),
        "cudnnConvolutionForward");
  if (bias != nullptr) {
    const Tensor4d of_bias(dtype, 1, g.out_channels, 1, 1);
    check(api().add(session.handle(), scales.one(), of_bias.get(), bias, scales.one(), d.y.get(), y),
          "cudnnAddTensor");
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
  check(
      api().backward_data(session.handle(), scales.one(), d.w.get(), w, d.y.get(), dout, d.convolution.get(),
                          algorithm->algo, workspace, algorithm->memory, scales.zero(), d.x.get(), dx),
      "cudnnConvolutionBackwardData");
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
  check(api().backward_filter(session.handle(), scales.one(), d.x.get(), x, d.y.get(), dout,
                              d.convolution.get(), algorithm->algo, workspace, algorithm->memory,
                              scales.zero(), d.w.get(), dw),
        "cudnnConvolutionBackwardFilter");
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
