// SPDX-License-Identifier: Apache-2.0
#include "cublasLt.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "matmul.h"
#include "memory.h"
#include "stream.h"

using heirloom::emulator::Epilogue;
using heirloom::emulator::MatmulOperand;
using heirloom::emulator::MatmulProblem;

struct cublasLtContext {
  int alive = 1;
};
struct cublasLtMatmulDescOpaque_t {
  int32_t compute = CUBLAS_COMPUTE_32F, scale = CUDA_R_32F;
  int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  int32_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  int32_t bias_type = -1;
  void* aux = nullptr;
  int64_t aux_leading = 0;
};
struct cublasLtMatrixLayoutOpaque_t {
  uint32_t type = CUDA_R_32F;
  int32_t order = CUBLASLT_ORDER_COL;
  uint64_t rows = 0, columns = 0;
  int64_t leading = 0;
  int32_t batches = 1;
  int64_t batch_stride = 0;
};
struct cublasLtMatmulPreferenceOpaque_t {
  uint32_t search = 0, reduction = CUBLASLT_REDUCTION_SCHEME_MASK;
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};
};

namespace {

using Desc = cublasLtMatmulDescOpaque_t;
using Layout = cublasLtMatrixLayoutOpaque_t;

constexpr uint64_t kMagic = 0x656d756c61746564;  // in the first word of every algorithm
constexpr int kAlgorithms = 10;
constexpr uint64_t kVectorBytes = 16;

// What an algorithm's eight words hold: magic, number, pieces of K, reduction scheme, alignment.
struct Algorithm {
  uint64_t id = 0, pieces = 1, reduction = 0, alignment = 1;

  cublasLtMatmulAlgo_t pack() const {
    return {{kMagic, id, pieces, reduction, alignment, 0, 0, 0}};
  }
  static bool unpack(const cublasLtMatmulAlgo_t& words, Algorithm* a) {
    *a = {words.data[1], words.data[2], words.data[3], words.data[4]};
    return words.data[0] == kMagic && a->id < kAlgorithms && a->pieces >= 1 && a->pieces <= 16 &&
           (a->alignment == 1 || a->alignment == kVectorBytes);
  }
};

// 0..5 ask for 16-byte alignment, 2 and 5 split K; 6..9 take any alignment, 8 splits K.
Algorithm algorithm(int id) {
  Algorithm a;
  a.id = static_cast<uint64_t>(id);
  a.pieces = id == 2 ? 4 : id == 5 || id == 8 ? 2 : 1;
  a.reduction = a.pieces == 1 ? CUBLASLT_REDUCTION_SCHEME_NONE
                : id == 5     ? CUBLASLT_REDUCTION_SCHEME_INPLACE
                              : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  a.alignment = id < 6 ? kVectorBytes : 1;
  return a;
}

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

uint64_t shape_hash(const Layout& d, uint64_t k, uint64_t id) {
  return mix(d.rows + mix(d.columns + mix(k + mix(id + 1))));
}

uint64_t workspace_bytes(const Algorithm& a, const Layout& d) {
  if (a.pieces == 1) return 0;
  if (a.reduction == CUBLASLT_REDUCTION_SCHEME_INPLACE) return 4096;
  return a.pieces * d.rows * d.columns * 4;
}

size_t size_of(uint32_t type) { return type == CUDA_R_16BF ? 2 : 4; }

uint64_t depth(const Desc& desc, const Layout& a) {
  return desc.transpose_a == CUBLAS_OP_N ? a.columns : a.rows;
}

bool layout_is_sane(const Layout& l) {
  const auto least = static_cast<int64_t>(l.order == CUBLASLT_ORDER_COL ? l.rows : l.columns);
  return l.rows > 0 && l.columns > 0 && l.leading >= least && l.batches > 0;
}

// What the library checks of descriptors alone.
cublasStatus_t check(const Desc& desc, const Layout& a, const Layout& b, const Layout& c,
                     const Layout& d) {
  for (const Layout* l : {&a, &b, &c, &d}) {
    if (!layout_is_sane(*l)) return CUBLAS_STATUS_INVALID_VALUE;
    if (l->batches != d.batches) return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool ta = desc.transpose_a != CUBLAS_OP_N, tb = desc.transpose_b != CUBLAS_OP_N;
  const uint64_t k = depth(desc, a);
  if ((ta ? a.columns : a.rows) != d.rows || (tb ? b.rows : b.columns) != d.columns ||
      (tb ? b.columns : b.rows) != k || c.rows != d.rows || c.columns != d.columns) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (desc.compute != CUBLAS_COMPUTE_32F && desc.compute != CUBLAS_COMPUTE_32F_PEDANTIC &&
      desc.compute != CUBLAS_COMPUTE_32F_FAST_TF32) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (desc.scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool floats = a.type == CUDA_R_32F && d.type == CUDA_R_32F;
  const bool halves = a.type == CUDA_R_16BF && (d.type == CUDA_R_16BF || d.type == CUDA_R_32F) &&
                      desc.compute != CUBLAS_COMPUTE_32F_FAST_TF32;
  if ((!floats && !halves) || a.type != b.type || c.type != d.type) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  switch (desc.epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_RELU:
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_RELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU_AUX:
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
    case CUBLASLT_EPILOGUE_DGELU:
      break;
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (desc.epilogue != CUBLASLT_EPILOGUE_DEFAULT && d.order != CUBLASLT_ORDER_COL) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if ((desc.epilogue & CUBLASLT_EPILOGUE_BIAS) != 0 && desc.bias_type != -1 &&
      desc.bias_type != static_cast<int32_t>(d.type)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if ((desc.epilogue & 128) != 0 && desc.aux_leading < static_cast<int64_t>(d.rows)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  return CUBLAS_STATUS_SUCCESS;
}

bool aligned(const void* p, uint64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// The vector algorithms read and write columns from 16-byte boundaries.
bool layouts_allow(const Algorithm& algorithm, const Desc& desc, const Layout& a, const Layout& b,
                   const Layout& c, const Layout& d) {
  if (algorithm.alignment == 1) return true;
  for (const Layout* l : {&a, &b, &c, &d}) {
    if (static_cast<uint64_t>(l->leading) * size_of(l->type) % algorithm.alignment != 0)
      return false;
  }
  return (desc.epilogue & CUBLASLT_EPILOGUE_BIAS) == 0 || aligned(desc.bias, algorithm.alignment);
}

void fill_result(const Algorithm& algorithm, const Layout& d,
                 cublasLtMatmulHeuristicResult_t* out) {
  *out = {};
  out->algo = algorithm.pack();
  out->workspaceSize = workspace_bytes(algorithm, d);
  out->state = CUBLAS_STATUS_SUCCESS;
  out->wavesCount = 1;
}

template <class Field>
cublasStatus_t assign(Field* field, const void* value, size_t bytes) {
  if (value == nullptr || bytes != sizeof(Field)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(field, value, sizeof(Field));
  return CUBLAS_STATUS_SUCCESS;
}
template <class Field>
cublasStatus_t give(const Field& field, void* value, size_t bytes, size_t* written) {
  if (written != nullptr) *written = sizeof(Field);
  if (bytes == 0 && written != nullptr) return CUBLAS_STATUS_SUCCESS;
  if (value == nullptr || bytes != sizeof(Field)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(value, &field, sizeof(Field));
  return CUBLAS_STATUS_SUCCESS;
}

MatmulOperand operand(const void* data, const Layout& l, bool transposed) {
  MatmulOperand o;
  o.data = const_cast<void*>(data);
  o.bfloat16 = l.type == CUDA_R_16BF;
  o.row_stride = l.order == CUBLASLT_ORDER_COL ? 1 : l.leading;
  o.column_stride = l.order == CUBLASLT_ORDER_COL ? l.leading : 1;
  if (transposed) std::swap(o.row_stride, o.column_stride);
  o.batch_stride = l.batch_stride;
  o.bytes = 0;
  const int64_t outer = static_cast<int64_t>(l.order == CUBLASLT_ORDER_COL ? l.columns : l.rows);
  const int64_t inner = static_cast<int64_t>(l.order == CUBLASLT_ORDER_COL ? l.rows : l.columns);
  o.bytes =
      static_cast<size_t>((l.batches - 1) * l.batch_stride + (outer - 1) * l.leading + inner) *
      size_of(l.type);
  return o;
}

}  // namespace

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR:
      return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR:
      return "CUBLAS_STATUS_LICENSE_ERROR";
  }
  return "CUBLAS_STATUS_UNKNOWN";
}
const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the functionality requested is not supported";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the GPU program failed to execute";
    default:
      return cublasLtGetStatusName(status);
  }
}
size_t cublasLtGetVersion() { return 130100; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = new Desc;
  (*desc)->compute = compute;
  (*desc)->scale = scale;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  if (desc == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      return assign(&desc->compute, value, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
      return assign(&desc->scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return assign(&desc->pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return assign(&desc->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return assign(&desc->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return assign(&desc->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return assign(&desc->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return assign(&desc->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return assign(&desc->aux_leading, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return assign(&desc->bias_type, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute, void* value,
                                              size_t bytes, size_t* written) {
  if (desc == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      return give(desc->compute, value, bytes, written);
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return give(desc->transpose_a, value, bytes, written);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return give(desc->transpose_b, value, bytes, written);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return give(desc->epilogue, value, bytes, written);
    default:
      return CUBLAS_STATUS_INVALID_VALUE;
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t leading) {
  *layout = new Layout;
  (*layout)->type = type;
  (*layout)->rows = rows;
  (*layout)->columns = columns;
  (*layout)->leading = leading;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t bytes) {
  if (layout == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      return assign(&layout->type, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return assign(&layout->order, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return assign(&layout->rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return assign(&layout->columns, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return assign(&layout->leading, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return assign(&layout->batches, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return assign(&layout->batch_stride, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  if (preference == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
      return assign(&preference->search, value, bytes);
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return assign(&preference->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return assign(&preference->reduction, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return assign(&preference->alignment[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return assign(&preference->alignment[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return assign(&preference->alignment[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return assign(&preference->alignment[3], value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* found) {
  *found = 0;
  if (handle == nullptr || wanted <= 0) return CUBLAS_STATUS_INVALID_VALUE;
  const cublasStatus_t status = check(*desc, *a, *b, *c, *d);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  std::vector<Algorithm> fitting;
  for (int id = 0; id < kAlgorithms; ++id) {
    const Algorithm one = algorithm(id);
    const bool pointers_allow =
        std::all_of(std::begin(preference->alignment), std::end(preference->alignment),
                    [&](uint32_t bytes) { return bytes >= one.alignment; });
    if (pointers_allow && layouts_allow(one, *desc, *a, *b, *c, *d) &&
        workspace_bytes(one, *d) <= preference->workspace &&
        (one.reduction & ~uint64_t{preference->reduction}) == 0) {
      fitting.push_back(one);
    }
  }
  // The proposals' order is the library's guess, not the truth that events tell.
  const uint64_t first = shape_hash(*d, depth(*desc, *a), 77) % std::max<size_t>(1, fitting.size());
  std::rotate(fitting.begin(), fitting.begin() + static_cast<std::ptrdiff_t>(first), fitting.end());
  for (const Algorithm& one : fitting) {
    if (*found < wanted) fill_result(one, *d, &results[(*found)++]);
  }
  return *found == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* words,
                                       cublasLtMatmulHeuristicResult_t* result) {
  Algorithm one;
  if (handle == nullptr || words == nullptr || !Algorithm::unpack(*words, &one)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const cublasStatus_t status = check(*desc, *a, *b, *c, *d);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (!layouts_allow(one, *desc, *a, *b, *c, *d)) return CUBLAS_STATUS_NOT_SUPPORTED;
  fill_result(one, *d, result);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* words,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void* value, size_t bytes, size_t* written) {
  Algorithm one;
  if (words == nullptr || !Algorithm::unpack(*words, &one)) return CUBLAS_STATUS_INVALID_VALUE;
  switch (attribute) {
    case CUBLASLT_ALGO_CONFIG_ID:
    case CUBLASLT_ALGO_CONFIG_TILE_ID:
      return give(static_cast<int32_t>(one.id), value, bytes, written);
    case CUBLASLT_ALGO_CONFIG_SPLITK_NUM:
      return give(static_cast<int32_t>(one.pieces), value, bytes, written);
    case CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME:
      return give(static_cast<uint32_t>(one.reduction), value, bytes, written);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* words,
                              void* workspace, size_t workspace_size, cudaStream_t stream) {
  if (handle == nullptr || desc == nullptr || alpha == nullptr || beta == nullptr) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const Layout &la = *a_layout, &lb = *b_layout, &lc = *c_layout, &ld = *d_layout;
  const cublasStatus_t status = check(*desc, la, lb, lc, ld);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (desc->pointer_mode != CUBLASLT_POINTER_MODE_HOST) return CUBLAS_STATUS_NOT_SUPPORTED;
  float alpha_value, beta_value;
  std::memcpy(&alpha_value, alpha, 4);
  std::memcpy(&beta_value, beta, 4);
  if (a == nullptr || b == nullptr || d == nullptr || (beta_value != 0 && c == nullptr)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (c == d && lc.leading != ld.leading) return CUBLAS_STATUS_INVALID_VALUE;
  const bool has_bias = (desc->epilogue & CUBLASLT_EPILOGUE_BIAS) != 0;
  const bool has_aux = (desc->epilogue & 128) != 0;
  if ((has_bias && desc->bias == nullptr) || (has_aux && desc->aux == nullptr)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const uint64_t k = depth(*desc, la);

  Algorithm one;
  if (words == nullptr) {
    cublasLtMatmulPreferenceOpaque_t preference;
    preference.workspace = workspace_size;
    cublasLtMatmulHeuristicResult_t first;
    int found = 0;
    const cublasStatus_t chosen = cublasLtMatmulAlgoGetHeuristic(
        handle, desc, a_layout, b_layout, c_layout, d_layout, &preference, 1, &first, &found);
    if (chosen != CUBLAS_STATUS_SUCCESS) return chosen;
    Algorithm::unpack(first.algo, &one);
  } else if (!Algorithm::unpack(*words, &one)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (!layouts_allow(one, *desc, la, lb, lc, ld)) return CUBLAS_STATUS_NOT_SUPPORTED;
  const uint64_t need = workspace_bytes(one, ld);
  if (need > workspace_size || (need != 0 && workspace == nullptr)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  for (const auto& [data, type] : {std::pair{a, la.type},
                                   {b, lb.type},
                                   {c, lc.type},
                                   {static_cast<const void*>(d), ld.type}}) {
    if (!aligned(data, std::max<uint64_t>(one.alignment, size_of(type)))) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
  }

  MatmulProblem p;
  p.m = static_cast<int64_t>(ld.rows);
  p.n = static_cast<int64_t>(ld.columns);
  p.k = static_cast<int64_t>(k);
  p.batches = ld.batches;
  p.a = operand(a, la, desc->transpose_a != CUBLAS_OP_N);
  p.b = operand(b, lb, desc->transpose_b != CUBLAS_OP_N);
  p.c = operand(c, lc, false);
  p.d = operand(d, ld, false);
  p.alpha = alpha_value;
  p.beta = beta_value;
  p.tf32 = desc->compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  if (has_bias) {
    p.bias.data = const_cast<void*>(desc->bias);
    p.bias.bfloat16 = ld.type == CUDA_R_16BF;
    p.bias.bytes = ld.rows * size_of(ld.type);
  }
  if (has_aux) {
    p.aux.data = desc->aux;
    p.aux.bfloat16 = ld.type == CUDA_R_16BF;
    p.aux.row_stride = 1;
    p.aux.column_stride = desc->aux_leading;
    p.aux.bytes =
        ((ld.columns - 1) * static_cast<uint64_t>(desc->aux_leading) + ld.rows) * size_of(ld.type);
  }
  p.epilogue = desc->epilogue == CUBLASLT_EPILOGUE_DGELU        ? Epilogue::kGeluBackward
               : (desc->epilogue & CUBLASLT_EPILOGUE_GELU) != 0 ? Epilogue::kGelu
               : (desc->epilogue & CUBLASLT_EPILOGUE_RELU) != 0 ? Epilogue::kRelu
                                                                : Epilogue::kNone;
  const uint64_t hash = shape_hash(ld, k, one.id);
  p.chunk = std::max<int64_t>(1, std::min<int64_t>(16 << hash % 4, (p.k + 1) / 2));
  p.backwards = (hash >> 8) % 2 != 0;
  p.workspace = workspace;
  p.workspace_bytes = need;

  const double work = 2.0 * double(p.m) * double(p.n) * double(p.k) * p.batches;
  auto operation = std::make_shared<heirloom::emulator::Operation>();
  operation->name = "cublasLtMatmul";
  operation->nanoseconds = 3000 + work / 400e3 * (1 + double((hash >> 16) % 64) / 128);
  operation->run = [p] { heirloom::emulator::run_matmul(p); };
  const heirloom::emulator::Lock lock(heirloom::emulator::runtime().mutex);
  const cudaError_t submitted = heirloom::emulator::submit(stream, std::move(operation));
  return submitted == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
