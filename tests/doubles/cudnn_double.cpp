// Takes the place of libcudnn.so.9 in tests: computes on the host what the cuDNN documentation says of the
// calls that Ergon makes.

#if __has_include(<cudnn.h>)

#include <cudnn.h>

#include "tests/doubles/device_memory.h"

extern int ergon_double_attentions;  // of cudnn_attention_double.cpp

namespace {

using namespace ergon::test_double;

int convolutions = 0;
cudaStream_t current_stream = nullptr;

struct Sizes {
  cudnnDataType_t type = CUDNN_DATA_FLOAT;
  int n = 0, c = 0, h = 0, w = 0;

  std::int64_t count() const { return std::int64_t{n} * c * h * w; }
  std::size_t at(int i, int j, int k, int l) const {
    return static_cast<std::size_t>(((std::int64_t{i} * c + j) * h + k) * w + l);
  }
};
struct Convolution {
  int padding[2], stride[2], dilation[2], groups = 1;
  cudnnConvolutionMode_t mode;
  cudnnDataType_t compute;
  cudnnMathType_t math = CUDNN_DEFAULT_MATH;
};

const Sizes& of(cudnnTensorDescriptor_t tensor) { return *reinterpret_cast<const Sizes*>(tensor); }
const Sizes& of(cudnnFilterDescriptor_t filter) { return *reinterpret_cast<const Sizes*>(filter); }
Convolution& of(cudnnConvolutionDescriptor_t convolution) {
  return *reinterpret_cast<Convolution*>(convolution);
}

cudaDataType_t type_of(const Sizes& sizes) {
  switch (sizes.type) {
    case CUDNN_DATA_BFLOAT16:
      return CUDA_R_16BF;
    case CUDNN_DATA_HALF:
      return CUDA_R_16F;
    case CUDNN_DATA_DOUBLE:
      return CUDA_R_64F;
    default:
      return CUDA_R_32F;
  }
}

bool fits(const Sizes& x, const Sizes& w, const Convolution& c, const Sizes& y) {
  const auto output = [&](int d, int size, int kernel) {
    return 1 + (size + 2 * c.padding[d] - ((kernel - 1) * c.dilation[d] + 1)) / c.stride[d];
  };
  return x.type == w.type && x.type == y.type && x.n > 0 && x.n == y.n && y.c == w.n && x.c == w.c * c.groups
         && y.c % c.groups == 0 && y.h == output(0, x.h, w.h) && y.w == output(1, x.w, w.w)
         && c.mode == CUDNN_CROSS_CORRELATION
         && c.compute == (x.type == CUDNN_DATA_DOUBLE ? CUDNN_DATA_DOUBLE : CUDNN_DATA_FLOAT);
}

// f(index in x, index in w, index in y) for every product.
template <class F>
void for_each_product(const Sizes& x, const Sizes& w, const Convolution& c, const Sizes& y, const F& f) {
  for (int n = 0; n < y.n; ++n)
    for (int o = 0; o < y.c; ++o)
      for (int i = 0; i < y.h; ++i)
        for (int j = 0; j < y.w; ++j)
          for (int k = 0; k < w.c; ++k)
            for (int a = 0; a < w.h; ++a)
              for (int b = 0; b < w.w; ++b) {
                const int row = i * c.stride[0] - c.padding[0] + a * c.dilation[0],
                          col = j * c.stride[1] - c.padding[1] + b * c.dilation[1];
                if (row < 0 || row >= x.h || col < 0 || col >= x.w) continue;
                f(x.at(n, o / (y.c / c.groups) * w.c + k, row, col), w.at(o, k, a, b), y.at(n, o, i, j));
              }
}

constexpr std::size_t kWorkspace = 768;

// The fastest first: one that is not deterministic, one of another precision, one that is neither.
template <class Perf>
cudnnStatus_t list(const Sizes& x, const Sizes& w, const Convolution& c, const Sizes& y, int count,
                   int* found, Perf* algorithms) {
  if (!fits(x, w, c, y)) return CUDNN_STATUS_BAD_PARAM;
  if (count < 3) return CUDNN_STATUS_BAD_PARAM;
  *found = 3;
  for (int i = 0; i < 3; ++i) {
    Perf& algorithm = algorithms[i];
    algorithm = {};
    algorithm.algo = static_cast<decltype(algorithm.algo)>(i);
    algorithm.status = CUDNN_STATUS_SUCCESS;
    algorithm.memory = kWorkspace;
    algorithm.determinism = i == 0 ? CUDNN_NON_DETERMINISTIC : CUDNN_DETERMINISTIC;
    algorithm.mathType = i == 1 ? CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION : c.math;
  }
  return CUDNN_STATUS_SUCCESS;
}

double scalar(const Sizes& sizes, const void* value) {
  return sizes.type == CUDNN_DATA_DOUBLE ? *static_cast<const double*>(value)
                                         : *static_cast<const float*>(value);
}

// What all three passes check and wait for.
cudnnStatus_t begin(const Sizes& x, const Sizes& w, const Convolution& c, const Sizes& y, int algorithm,
                    const void* alpha, const void* beta, void* workspace, std::size_t bytes) {
  const cudnnMathType_t wanted =
      x.type == CUDNN_DATA_HALF || x.type == CUDNN_DATA_BFLOAT16 ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH;
  if (!fits(x, w, c, y) || algorithm != 2 || bytes < kWorkspace || workspace == nullptr || c.math != wanted
      || scalar(x, alpha) != 1 || scalar(x, beta) != 0)
    return CUDNN_STATUS_BAD_PARAM;
  if (cudaStreamSynchronize(current_stream) != cudaSuccess) return CUDNN_STATUS_EXECUTION_FAILED;
  if (cudaMemset(workspace, 0x5a, kWorkspace) != cudaSuccess) return CUDNN_STATUS_EXECUTION_FAILED;
  ++convolutions;
  return CUDNN_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

// Passes so far.
int ergon_double_calls() { return convolutions + ergon_double_attentions; }

cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  static int it;
  *handle = reinterpret_cast<cudnnHandle_t>(&it);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t, cudaStream_t stream) {
  current_stream = stream;
  return CUDNN_STATUS_SUCCESS;
}
const char* cudnnGetErrorString(cudnnStatus_t status) {
  return status == CUDNN_STATUS_BAD_PARAM          ? "CUDNN_STATUS_BAD_PARAM"
         : status == CUDNN_STATUS_EXECUTION_FAILED ? "CUDNN_STATUS_EXECUTION_FAILED"
                                                   : "an error";
}

cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t* tensor) {
  *tensor = reinterpret_cast<cudnnTensorDescriptor_t>(new Sizes);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetTensor4dDescriptor(cudnnTensorDescriptor_t tensor, cudnnTensorFormat_t format,
                                         cudnnDataType_t type, int n, int c, int h, int w) {
  if (format != CUDNN_TENSOR_NCHW) return CUDNN_STATUS_BAD_PARAM;
  *reinterpret_cast<Sizes*>(tensor) = {type, n, c, h, w};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t tensor) {
  delete reinterpret_cast<Sizes*>(tensor);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t* filter) {
  *filter = reinterpret_cast<cudnnFilterDescriptor_t>(new Sizes);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetFilter4dDescriptor(cudnnFilterDescriptor_t filter, cudnnDataType_t type,
                                         cudnnTensorFormat_t format, int k, int c, int h, int w) {
  if (format != CUDNN_TENSOR_NCHW) return CUDNN_STATUS_BAD_PARAM;
  *reinterpret_cast<Sizes*>(filter) = {type, k, c, h, w};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroyFilterDescriptor(cudnnFilterDescriptor_t filter) {
  delete reinterpret_cast<Sizes*>(filter);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnCreateConvolutionDescriptor(cudnnConvolutionDescriptor_t* convolution) {
  *convolution = reinterpret_cast<cudnnConvolutionDescriptor_t>(new Convolution);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetConvolution2dDescriptor(cudnnConvolutionDescriptor_t convolution, int pad_h, int pad_w,
                                              int u, int v, int dilation_h, int dilation_w,
                                              cudnnConvolutionMode_t mode, cudnnDataType_t compute) {
  of(convolution) = {{pad_h, pad_w}, {u, v}, {dilation_h, dilation_w}, 1, mode, compute, CUDNN_DEFAULT_MATH};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetConvolutionGroupCount(cudnnConvolutionDescriptor_t convolution, int groups) {
  of(convolution).groups = groups;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t convolution, cudnnMathType_t math) {
  of(convolution).math = math;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroyConvolutionDescriptor(cudnnConvolutionDescriptor_t convolution) {
  delete &of(convolution);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetConvolutionForwardAlgorithm_v7(cudnnHandle_t, const cudnnTensorDescriptor_t x,
                                                     const cudnnFilterDescriptor_t w,
                                                     const cudnnConvolutionDescriptor_t convolution,
                                                     const cudnnTensorDescriptor_t y, const int count,
                                                     int* found, cudnnConvolutionFwdAlgoPerf_t* algorithms) {
  return list(of(x), of(w), of(convolution), of(y), count, found, algorithms);
}
cudnnStatus_t cudnnGetConvolutionBackwardDataAlgorithm_v7(cudnnHandle_t, const cudnnFilterDescriptor_t w,
                                                          const cudnnTensorDescriptor_t dy,
                                                          const cudnnConvolutionDescriptor_t convolution,
                                                          const cudnnTensorDescriptor_t dx, const int count,
                                                          int* found,
                                                          cudnnConvolutionBwdDataAlgoPerf_t* algorithms) {
  return list(of(dx), of(w), of(convolution), of(dy), count, found, algorithms);
}
cudnnStatus_t cudnnGetConvolutionBackwardFilterAlgorithm_v7(cudnnHandle_t, const cudnnTensorDescriptor_t x,
                                                            const cudnnTensorDescriptor_t dy,
                                                            const cudnnConvolutionDescriptor_t convolution,
                                                            const cudnnFilterDescriptor_t dw, const int count,
                                                            int* found,
                                                            cudnnConvolutionBwdFilterAlgoPerf_t* algorithms) {
  return list(of(x), of(dw), of(convolution), of(dy), count, found, algorithms);
}

cudnnStatus_t cudnnConvolutionForward(cudnnHandle_t, const void* alpha, const cudnnTensorDescriptor_t xd,
                                      const void* x, const cudnnFilterDescriptor_t wd, const void* w,
                                      const cudnnConvolutionDescriptor_t cd, cudnnConvolutionFwdAlgo_t algo,
                                      void* workspace, std::size_t bytes, const void* beta,
                                      const cudnnTensorDescriptor_t yd, void* y) {
  const Sizes &xs = of(xd), &ws = of(wd), &ys = of(yd);
  const cudnnStatus_t status = begin(xs, ws, of(cd), ys, algo, alpha, beta, workspace, bytes);
  if (status != CUDNN_STATUS_SUCCESS) return status;
  const auto xv = read(x, type_of(xs), 0, xs.count()), wv = read(w, type_of(ws), 0, ws.count());
  std::vector<double> yv(static_cast<std::size_t>(ys.count()));
  for_each_product(xs, ws, of(cd), ys,
                   [&](std::size_t i, std::size_t k, std::size_t o) { yv[o] += xv[i] * wv[k]; });
  write(y, type_of(ys), 0, yv);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnConvolutionBackwardData(cudnnHandle_t, const void* alpha, const cudnnFilterDescriptor_t wd,
                                           const void* w, const cudnnTensorDescriptor_t dyd, const void* dy,
                                           const cudnnConvolutionDescriptor_t cd,
                                           cudnnConvolutionBwdDataAlgo_t algo, void* workspace,
                                           std::size_t bytes, const void* beta,
                                           const cudnnTensorDescriptor_t dxd, void* dx) {
  const Sizes &xs = of(dxd), &ws = of(wd), &ys = of(dyd);
  const cudnnStatus_t status = begin(xs, ws, of(cd), ys, algo, alpha, beta, workspace, bytes);
  if (status != CUDNN_STATUS_SUCCESS) return status;
  const auto yv = read(dy, type_of(ys), 0, ys.count()), wv = read(w, type_of(ws), 0, ws.count());
  std::vector<double> xv(static_cast<std::size_t>(xs.count()));
  for_each_product(xs, ws, of(cd), ys,
                   [&](std::size_t i, std::size_t k, std::size_t o) { xv[i] += yv[o] * wv[k]; });
  write(dx, type_of(xs), 0, xv);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnConvolutionBackwardFilter(cudnnHandle_t, const void* alpha,
                                             const cudnnTensorDescriptor_t xd, const void* x,
                                             const cudnnTensorDescriptor_t dyd, const void* dy,
                                             const cudnnConvolutionDescriptor_t cd,
                                             cudnnConvolutionBwdFilterAlgo_t algo, void* workspace,
                                             std::size_t bytes, const void* beta,
                                             const cudnnFilterDescriptor_t dwd, void* dw) {
  const Sizes &xs = of(xd), &ws = of(dwd), &ys = of(dyd);
  const cudnnStatus_t status = begin(xs, ws, of(cd), ys, algo, alpha, beta, workspace, bytes);
  if (status != CUDNN_STATUS_SUCCESS) return status;
  const auto xv = read(x, type_of(xs), 0, xs.count()), yv = read(dy, type_of(ys), 0, ys.count());
  std::vector<double> wv(static_cast<std::size_t>(ws.count()));
  for_each_product(xs, ws, of(cd), ys,
                   [&](std::size_t i, std::size_t k, std::size_t o) { wv[k] += xv[i] * yv[o]; });
  write(dw, type_of(ws), 0, wv);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnAddTensor(cudnnHandle_t, const void* alpha, const cudnnTensorDescriptor_t ad,
                             const void* a, const void* beta, const cudnnTensorDescriptor_t cd, void* c) {
  const Sizes &as = of(ad), &cs = of(cd);
  if (as.n != 1 || as.c != cs.c || as.h != 1 || as.w != 1) return CUDNN_STATUS_BAD_PARAM;
  if (cudaStreamSynchronize(current_stream) != cudaSuccess) return CUDNN_STATUS_EXECUTION_FAILED;
  const auto av = read(a, type_of(as), 0, as.count());
  auto cv = read(c, type_of(cs), 0, cs.count());
  for (std::size_t i = 0; i < cv.size(); ++i) {
    const std::size_t channel = i / static_cast<std::size_t>(cs.h * cs.w) % static_cast<std::size_t>(cs.c);
    cv[i] = scalar(cs, alpha) * av[channel] + scalar(cs, beta) * cv[i];
  }
  write(c, type_of(cs), 0, cv);
  return CUDNN_STATUS_SUCCESS;
}

}  // extern "C"

#endif
