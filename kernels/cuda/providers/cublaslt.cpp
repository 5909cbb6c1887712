// cuBLASLt knows matrices column by column; ours, row by row, are their transposes to it. So C = A B is
// computed as C^T (N, M) = B^T A^T: its first operand is our b, its rows are our columns, and its bias, one
// for each row, is ours, one for each column.

#include "kernels/cuda/providers/cublaslt.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>

#include <cublasLt.h>

#include "core/log.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/providers/library.h"

namespace ergon::kernels::cuda {
namespace {

#define ERGON_TEXT_OF(x) #x
#define ERGON_TEXT(x) ERGON_TEXT_OF(x)

const Library& cublaslt_library() {
  static const Library library("ERGON_CUBLASLT_LIBRARY", "libcublasLt.so." ERGON_TEXT(CUBLAS_VER_MAJOR));
  return library;
}

#define ERGON_CUBLASLT(function) ERGON_FUNCTION(cublaslt_library(), function)
#define ERGON_CUBLASLT_CHECK(function, ...) check(ERGON_CUBLASLT(function)(__VA_ARGS__), #function)

void check(cublasStatus_t status, const char* call) {
  ERGON_CHECK(status == CUBLAS_STATUS_SUCCESS, "[gemm] {}: {}", call,
              ERGON_CUBLASLT(cublasLtGetStatusString)(status));
}

// Of the current device; made once.
cublasLtHandle_t handle() {
  static std::mutex mutex;
  static std::map<int, cublasLtHandle_t> handles;
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  const std::lock_guard lock(mutex);
  cublasLtHandle_t& of_device = handles[device];
  if (of_device == nullptr) ERGON_CUBLASLT_CHECK(cublasLtCreate, &of_device);
  return of_device;
}

class MatmulDesc {
 public:
  MatmulDesc(cublasComputeType_t compute, cudaDataType_t scale) {
    ERGON_CUBLASLT_CHECK(cublasLtMatmulDescCreate, &desc_, compute, scale);
  }
  ~MatmulDesc() { ERGON_CUBLASLT(cublasLtMatmulDescDestroy)(desc_); }
  MatmulDesc(const MatmulDesc&) = delete;
  MatmulDesc& operator=(const MatmulDesc&) = delete;

  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    ERGON_CUBLASLT_CHECK(cublasLtMatmulDescSetAttribute, desc_, attribute, &value, sizeof(value));
  }
  cublasLtMatmulDesc_t get() const { return desc_; }

 private:
  cublasLtMatmulDesc_t desc_ = nullptr;
};

class Preference {
 public:
  Preference() { ERGON_CUBLASLT_CHECK(cublasLtMatmulPreferenceCreate, &preference_); }
  ~Preference() { ERGON_CUBLASLT(cublasLtMatmulPreferenceDestroy)(preference_); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    ERGON_CUBLASLT_CHECK(cublasLtMatmulPreferenceSetAttribute, preference_, attribute, &value, sizeof(value));
  }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  cublasLtMatmulPreference_t preference_ = nullptr;
};

// Column-major: what cuBLASLt is told of the transpose of a matrix of ours, and what it then has to do.
struct View {
  std::int64_t rows, cols, ld;
  cublasOperation_t operation;
};

std::optional<View> view_of(std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
                            std::int64_t col_stride) {
  if ((col_stride == 1 || cols == 1) && (row_stride >= cols || rows == 1))
    return View{cols, rows, rows == 1 ? cols : row_stride, CUBLAS_OP_N};
  if ((row_stride == 1 || rows == 1) && (col_stride >= rows || cols == 1))
    return View{rows, cols, cols == 1 ? rows : col_stride, CUBLAS_OP_T};
  return std::nullopt;
}

class Layout {
 public:
  Layout(cudaDataType_t type, const View& view, std::int64_t batch, std::int64_t batch_stride) {
    ERGON_CUBLASLT_CHECK(cublasLtMatrixLayoutCreate, &layout_, type, static_cast<std::uint64_t>(view.rows),
                         static_cast<std::uint64_t>(view.cols), view.ld);
    set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<std::int32_t>(batch));
    set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, batch_stride);
  }
  ~Layout() { ERGON_CUBLASLT(cublasLtMatrixLayoutDestroy)(layout_); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;

  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  template <class T>
  void set(cublasLtMatrixLayoutAttribute_t attribute, const T& value) {
    ERGON_CUBLASLT_CHECK(cublasLtMatrixLayoutSetAttribute, layout_, attribute, &value, sizeof(value));
  }
  cublasLtMatrixLayout_t layout_ = nullptr;
};

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f16:
      return CUDA_R_16F;
    case DType::f64:
      return CUDA_R_64F;
    default:
      return CUDA_R_32F;
  }
}

bool has_types(const GemmParams& p) {
  return p.a.dtype == p.b.dtype
         && (p.c.dtype == p.a.dtype || (p.c.dtype == DType::f32 && p.a.dtype != DType::f64))
         && (p.bias == nullptr || p.bias_dtype == p.c.dtype);
}

// The epilogue, if there is one that does all of it.
std::optional<cublasLtEpilogue_t> epilogue_of(const GemmParams& p) {
  const bool plain = p.bias == nullptr && p.activation == Activation::none && !p.activation_backward;
  if (p.c.dtype == DType::f64 && !plain) return std::nullopt;
  // The residual takes the place of the C of beta * C, before the activation.
  if (p.residual != nullptr && (p.beta != 0 || p.activation != Activation::none)) return std::nullopt;
  const bool aux = p.pre_activation != nullptr, bias = p.bias != nullptr;
  // "Must be divisible by 8" (cublasLtMatmulDescAttributes_t).
  const bool aux_fits = (p.c.row_stride % 8 == 0 || p.M == 1) && p.c.row_stride >= p.N
                        && p.c.outer_stride % 8 == 0 && p.c.inner_stride % 8 == 0;
  if (aux && !aux_fits) return std::nullopt;
  if (p.activation_backward) {
    if (bias || p.activation != Activation::gelu_tanh) return std::nullopt;
    return CUBLASLT_EPILOGUE_DGELU;
  }
  switch (p.activation) {
    case Activation::none:
      if (aux) return std::nullopt;
      return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    case Activation::relu:
      if (aux) return std::nullopt;  // cuBLASLt's is a bit mask
      return bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
    case Activation::gelu_tanh:
      if (aux) return bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
      return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    default:
      return std::nullopt;
  }
}

// The batch dimensions that one call takes: both where they are one in every operand.
struct Batch {
  std::int64_t calls, count;
  std::int64_t a, b, c;  // strides within a call
};

Batch batch_of(const GemmParams& p) {
  if (p.batch_inner == 1) return {1, p.batch_outer, p.a.outer_stride, p.b.outer_stride, p.c.outer_stride};
  const auto one = [&](const auto& operand) {
    return operand.outer_stride == p.batch_inner * operand.inner_stride;
  };
  const bool all = p.batch_outer == 1 || (one(p.a) && one(p.b) && one(p.c));
  return {all ? 1 : p.batch_outer, all ? p.batch_outer * p.batch_inner : p.batch_inner, p.a.inner_stride,
          p.b.inner_stride, p.c.inner_stride};
}

// The largest power of two, up to 256, that divides the address in every call: the same for each, so that all
// find the same algorithm.
std::uint32_t alignment_of(const void* pointer, std::int64_t outer_stride, DType dtype) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer)
                       | static_cast<std::uintptr_t>(outer_stride * size_of(dtype)) | 256;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

template <class Pointer>
Pointer at(Pointer data, DType dtype, std::int64_t element) {
  using Byte = std::conditional_t<std::is_same_v<Pointer, void*>, char, const char>;
  return data == nullptr ? nullptr : static_cast<Byte*>(data) + element * size_of(dtype);
}

// One call: batch entries from element offset `outer` of each operand's outer strides on.
bool multiply(const GemmParams& p, const Batch& batch, std::int64_t outer, const View& a_view,
              const View& b_view, const View& c_view, cublasLtEpilogue_t epilogue) {
  const bool f64 = p.c.dtype == DType::f64;
  const bool tf32 = p.a.dtype == DType::f32 && p.allow_tf32;
  MatmulDesc desc(f64    ? CUBLAS_COMPUTE_64F
                  : tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                         : CUBLAS_COMPUTE_32F,
                  f64 ? CUDA_R_64F : CUDA_R_32F);
  const void* a = at(p.a.data, p.a.dtype, outer * p.a.outer_stride);
  const void* b = at(p.b.data, p.b.dtype, outer * p.b.outer_stride);
  void* d = at(p.c.data, p.c.dtype, outer * p.c.outer_stride);
  const void* residual = at(p.residual, p.c.dtype, outer * p.c.outer_stride);
  const void* c = residual == nullptr ? d : residual;
  desc.set(CUBLASLT_MATMUL_DESC_TRANSA, b_view.operation);
  desc.set(CUBLASLT_MATMUL_DESC_TRANSB, a_view.operation);
  desc.set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  if (p.bias != nullptr) desc.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  if (p.bias != nullptr) desc.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(p.bias_dtype));
  if (p.pre_activation != nullptr) {
    desc.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
             at(p.pre_activation, p.c.dtype, outer * p.c.outer_stride));
    desc.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, c_view.ld);
    desc.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, batch.c);
    desc.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, data_type(p.c.dtype));
  }
  const Layout a_layout(data_type(p.a.dtype), a_view, batch.count, batch.a),
      b_layout(data_type(p.b.dtype), b_view, batch.count, batch.b),
      c_layout(data_type(p.c.dtype), c_view, batch.count, batch.c);

  const auto workspace_bytes = static_cast<std::size_t>(p.workspace == nullptr ? 0 : cublaslt_workspace());
  Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(b, p.b.outer_stride, p.b.dtype));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(a, p.a.outer_stride, p.a.dtype));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(c, p.c.outer_stride, p.c.dtype));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(d, p.c.outer_stride, p.c.dtype));
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t searched = ERGON_CUBLASLT(cublasLtMatmulAlgoGetHeuristic)(
      handle(), desc.get(), b_layout.get(), a_layout.get(), c_layout.get(), c_layout.get(), preference.get(),
      1, &best, &found);
  if (searched == CUBLAS_STATUS_NOT_SUPPORTED || found == 0 || best.state != CUBLAS_STATUS_SUCCESS)
    return false;
  check(searched, "cublasLtMatmulAlgoGetHeuristic");

  const double alpha = p.alpha, beta = residual == nullptr ? p.beta : 1;
  const float alpha32 = static_cast<float>(alpha), beta32 = static_cast<float>(beta);
  ERGON_CUBLASLT_CHECK(cublasLtMatmul, handle(), desc.get(),
                       f64 ? static_cast<const void*>(&alpha) : &alpha32, b, b_layout.get(), a,
                       a_layout.get(), f64 ? static_cast<const void*>(&beta) : &beta32, c, c_layout.get(), d,
                       c_layout.get(), &best.algo, p.workspace, workspace_bytes, stream());
  return true;
}

}  // namespace

bool cublaslt_gemm(const GemmParams& p) {
  const auto a = view_of(p.M, p.K, p.a.row_stride, p.a.col_stride),
             b = view_of(p.K, p.N, p.b.row_stride, p.b.col_stride),
             c = view_of(p.M, p.N, p.c.row_stride, p.c.col_stride);
  const auto epilogue = epilogue_of(p);
  bool done = has_types(p) && a && b && c && c->operation == CUBLAS_OP_N && epilogue && p.K > 0;
  const Batch batch = batch_of(p);
  for (std::int64_t call = 0; done && call < batch.calls; ++call) {
    done = multiply(p, batch, call, *a, *b, *c, *epilogue);
  }
  if (!done) SPDLOG_LOGGER_DEBUG(&log(), "[gemm] M {} N {} K {}: not for cuBLASLt", p.M, p.N, p.K);
  return done;
}

// What NVIDIA recommends (cuBLAS documentation, "cublasSetWorkspace").
std::int64_t cublaslt_workspace() {
  return std::int64_t{device_limits().compute_capability >= 90 ? 32 : 4} << 20;
}

}  // namespace ergon::kernels::cuda
