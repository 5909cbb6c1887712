// Takes the place of libcublasLt.so in tests: computes on the host what the cuBLAS documentation says of the
// calls that Ergon makes, and refuses what it says is not supported.

#include <cmath>
#include <cstring>

#include <cublasLt.h>

#include "tests/doubles/device_memory.h"

namespace {

using namespace ergon::test_double;

int products = 0;

struct Desc {
  cublasComputeType_t compute;
  std::int32_t scale_type;
  std::int32_t transa = CUBLAS_OP_N, transb = CUBLAS_OP_N;
  std::uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  void* aux = nullptr;
  std::int64_t aux_ld = 0, aux_batch_stride = 0;
  std::int32_t aux_type = -1, bias_type = -1;
};

struct MatrixLayout {
  cudaDataType_t type;
  std::uint64_t rows, cols;
  std::int64_t ld;
  std::int32_t batch = 1;
  std::int64_t batch_stride = 0;
};

struct Preference {
  std::uint64_t workspace = 0;
  std::uint32_t alignment[4] = {256, 256, 256, 256};
};

// What an algorithm was chosen for, in cublasLtMatmulAlgo_t.
struct Algorithm {
  std::uint64_t workspace;
  std::uint32_t alignment[4];
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

template <class Opaque>
auto& own(Opaque handle) {
  if constexpr (std::is_same_v<Opaque, cublasLtMatmulDesc_t>) {
    return *reinterpret_cast<Desc*>(handle);
  } else if constexpr (std::is_same_v<Opaque, cublasLtMatrixLayout_t>) {
    return *reinterpret_cast<MatrixLayout*>(handle);
  } else {
    return *reinterpret_cast<Preference*>(handle);
  }
}

template <class T>
cublasStatus_t assign(T& to, const void* from, std::size_t bytes) {
  if (bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, from, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

bool has(const Desc& desc, int part) { return (static_cast<int>(desc.epilogue) & part) != 0; }

// Sizes, leading dimensions, types and epilogue that fit together?
bool fits(const Desc& d, const MatrixLayout& a, const MatrixLayout& b, const MatrixLayout& c) {
  const auto rows = [](const MatrixLayout& x, int op) { return op == CUBLAS_OP_N ? x.rows : x.cols; };
  const auto cols = [](const MatrixLayout& x, int op) { return op == CUBLAS_OP_N ? x.cols : x.rows; };
  if (rows(a, d.transa) != c.rows || cols(a, d.transa) != rows(b, d.transb) || cols(b, d.transb) != c.cols)
    return false;
  for (const MatrixLayout* x : {&a, &b, &c}) {
    if (x->ld < static_cast<std::int64_t>(x->rows) || x->batch != c.batch) return false;
  }
  const bool half = a.type == CUDA_R_16F || a.type == CUDA_R_16BF;
  if (a.type != b.type || (c.type != a.type && !(half && c.type == CUDA_R_32F))) return false;
  if (a.type == CUDA_R_64F) {
    return d.compute == CUBLAS_COMPUTE_64F && d.scale_type == CUDA_R_64F
           && d.epilogue == CUBLASLT_EPILOGUE_DEFAULT;
  }
  const bool tf32 = d.compute == CUBLAS_COMPUTE_32F_FAST_TF32 && a.type == CUDA_R_32F;
  if ((d.compute != CUBLAS_COMPUTE_32F && !tf32) || d.scale_type != CUDA_R_32F) return false;
  if (has(d, CUBLASLT_EPILOGUE_BIAS) && (d.bias == nullptr || d.bias_type != c.type)) return false;
  if (has(d, 128)) {
    if (d.aux == nullptr || d.aux_type != c.type || d.aux_ld % 8 != 0 || d.aux_batch_stride % 8 != 0
        || d.aux_ld < static_cast<std::int64_t>(c.rows))
      return false;
  }
  return true;
}

double gelu_inner(double x) { return std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); }
double gelu(double x) { return 0.5 * x * (1 + std::tanh(gelu_inner(x))); }
double gelu_derivative(double x) {
  const double t = std::tanh(gelu_inner(x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

// op(x) of a batch entry, column by column of x.
struct Matrix {
  std::vector<std::vector<double>> columns;
  bool transposed;

  Matrix(const void* data, const MatrixLayout& layout, std::int64_t entry, int op)
      : transposed(op != CUBLAS_OP_N) {
    for (std::uint64_t j = 0; j < layout.cols; ++j) {
      columns.push_back(read(data, layout.type,
                             entry * layout.batch_stride + static_cast<std::int64_t>(j) * layout.ld,
                             static_cast<std::int64_t>(layout.rows)));
    }
  }
  double operator()(std::size_t i, std::size_t j) const { return transposed ? columns[i][j] : columns[j][i]; }
};

void multiply_entry(const Desc& d, double alpha, const void* a_data, const MatrixLayout& al,
                    const void* b_data, const MatrixLayout& bl, double beta, const void* c_data,
                    const MatrixLayout& cl, void* d_data, std::int64_t entry) {
  const Matrix a(a_data, al, entry, d.transa), b(b_data, bl, entry, d.transb);
  const auto m = static_cast<std::int64_t>(cl.rows), n = static_cast<std::int64_t>(cl.cols);
  const std::size_t depth = d.transa == CUBLAS_OP_N ? al.cols : al.rows;
  const std::vector<double> bias =
      has(d, CUBLASLT_EPILOGUE_BIAS) ? read(d.bias, cl.type, 0, m) : std::vector<double>();
  for (std::int64_t j = 0; j < n; ++j) {
    const std::int64_t first = entry * cl.batch_stride + j * cl.ld,
                       aux_first = entry * d.aux_batch_stride + j * d.aux_ld;
    const std::vector<double> before = beta == 0 ? std::vector<double>() : read(c_data, cl.type, first, m);
    const bool backward = d.epilogue == CUBLASLT_EPILOGUE_DGELU;
    std::vector<double> aux =
        backward ? read(d.aux, cl.type, aux_first, m) : std::vector<double>(static_cast<std::size_t>(m));
    std::vector<double> result;
    for (std::size_t i = 0; i < static_cast<std::size_t>(m); ++i) {
      double x = 0;
      for (std::size_t k = 0; k < depth; ++k) x += a(i, k) * b(k, static_cast<std::size_t>(j));
      x = alpha * x + (beta == 0 ? 0 : beta * before[i]) + (bias.empty() ? 0 : bias[i]);
      if (backward) {
        x *= gelu_derivative(aux[i]);
      } else {
        aux[i] = x;
        if (has(d, CUBLASLT_EPILOGUE_RELU)) x = std::fmax(x, 0);
        if (has(d, CUBLASLT_EPILOGUE_GELU)) x = gelu(x);
      }
      result.push_back(x);
    }
    write(d_data, cl.type, first, result);
    if (has(d, 128) && !backward) write(d.aux, cl.type, aux_first, aux);
  }
}

double scalar(const Desc& d, const void* value) {
  return d.scale_type == CUDA_R_64F ? *static_cast<const double*>(value) : *static_cast<const float*>(value);
}

}  // namespace

extern "C" {

// Products so far.
int ergon_double_calls() { return products; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  static int it;
  *handle = reinterpret_cast<cublasLtHandle_t>(&it);
  return CUBLAS_STATUS_SUCCESS;
}
const char* cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_INVALID_VALUE ? "an unsupported value or parameter" : "an error";
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = reinterpret_cast<cublasLtMatmulDesc_t>(new Desc{compute, scale});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete &own(desc);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle,
                                              cublasLtMatmulDescAttributes_t attribute, const void* value,
                                              std::size_t bytes) {
  Desc& d = own(handle);
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return assign(d.transa, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return assign(d.transb, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return assign(d.epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return assign(d.bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return assign(d.bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return assign(d.aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return assign(d.aux_ld, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE:
      return assign(d.aux_batch_stride, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
      return assign(d.aux_type, value, bytes);
    default:
      return CUBLAS_STATUS_INVALID_VALUE;
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          std::uint64_t rows, std::uint64_t cols, std::int64_t ld) {
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(new MatrixLayout{type, rows, cols, ld});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete &own(layout);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                std::size_t bytes) {
  if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) return assign(own(layout).batch, value, bytes);
  if (attribute == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET)
    return assign(own(layout).batch_stride, value, bytes);
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete &own(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, std::size_t bytes) {
  Preference& p = own(preference);
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) return assign(p.workspace, value, bytes);
  const int operand = attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
  return operand < 0 || operand > 3 ? CUBLAS_STATUS_INVALID_VALUE
                                    : assign(p.alignment[operand], value, bytes);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t preference, int count,
                                              cublasLtMatmulHeuristicResult_t results[], int* found) {
  *found = 0;
  if (count < 1 || !fits(own(desc), own(a), own(b), own(c))) return CUBLAS_STATUS_INVALID_VALUE;
  const Preference& p = own(preference);
  Algorithm algorithm{p.workspace, {}};
  std::memcpy(algorithm.alignment, p.alignment, sizeof algorithm.alignment);
  std::memcpy(&results[0].algo, &algorithm, sizeof algorithm);
  results[0].workspaceSize = p.workspace;
  results[0].state = CUBLAS_STATUS_SUCCESS;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, std::size_t workspace_bytes, cudaStream_t stream) {
  const Desc& of = own(desc);
  Algorithm algorithm;
  std::memcpy(&algorithm, algo, sizeof algorithm);
  const void* operands[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    if (reinterpret_cast<std::uintptr_t>(operands[i]) % algorithm.alignment[i] != 0)
      return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (!fits(of, own(a_layout), own(b_layout), own(d_layout)) || workspace_bytes < algorithm.workspace
      || (workspace == nullptr && algorithm.workspace > 0))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (cudaStreamSynchronize(stream) != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  // All of the workspace may be written.
  if (algorithm.workspace > 0 && cudaMemset(workspace, 0x5a, algorithm.workspace) != cudaSuccess)
    return CUBLAS_STATUS_EXECUTION_FAILED;
  for (std::int64_t entry = 0; entry < own(d_layout).batch; ++entry) {
    multiply_entry(of, scalar(of, alpha), a, own(a_layout), b, own(b_layout), scalar(of, beta), c,
                   own(c_layout), d, entry);
  }
  ++products;
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
