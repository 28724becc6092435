// SPDX-License-Identifier: Apache-2.0
#include "matmul.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "memory.h"
#include "stream.h"

namespace heirloom::emulator {
namespace {

constexpr int kRows = 8, kColumns = 6;  // of a tile in registers
using Vector = float __attribute__((vector_size(16)));

float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
uint32_t to_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

float read(const MatmulOperand& o, int64_t at) {
  if (!o.bfloat16) return static_cast<const float*>(o.data)[at];
  return from_bits(uint32_t{static_cast<const uint16_t*>(o.data)[at]} << 16);
}

void write(const MatmulOperand& o, int64_t at, float value) {
  if (!o.bfloat16) {
    static_cast<float*>(o.data)[at] = value;
    return;
  }
  const uint32_t u = to_bits(value);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  static_cast<uint16_t*>(o.data)[at] =
      static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}

// 10 mantissa bits, ties away from zero.
float round_tf32(float value) {
  const uint32_t u = to_bits(value);
  if ((u & 0x7f800000u) == 0x7f800000u) return value;
  return from_bits((u + 0x1000u) & ~0x1fffu);
}

float gelu(float x) {
  const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1 + std::tanh(inner));
}
float gelu_derivative(float x) {
  const float t = std::tanh(0.7978845608028654f * (x + 0.044715f * x * x * x));
  return 0.5f * (1 + t) +
         0.5f * x * (1 - t * t) * 0.7978845608028654f * (1 + 3 * 0.044715f * x * x);
}

// `width` lanes side by side, k after k; what is past the edge is zero.
void pack(const MatmulOperand& o, int64_t base, int64_t lane_stride, int64_t lanes, int width,
          int64_t k_stride, int64_t k, bool tf32, std::vector<float>* out) {
  const int64_t panels = (lanes + width - 1) / width;
  out->assign(static_cast<size_t>(panels * width * k), 0.0f);
  float* data = out->data();
  const auto one = [&](int64_t lane, int64_t p) {
    const float value = read(o, base + lane * lane_stride + p * k_stride);
    data[(lane / width * k + p) * width + lane % width] = tf32 ? round_tf32(value) : value;
  };
  if (lane_stride == 1) {
    for (int64_t p = 0; p < k; ++p) {
      for (int64_t lane = 0; lane < lanes; ++lane) one(lane, p);
    }
  } else {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int64_t p = 0; p < k; ++p) one(lane, p);
    }
  }
}

// sum[column][row] over [k_begin, k_end), from zero.
void tile(const float* a, const float* b, int64_t k_begin, int64_t k_end,
          Vector sum[kColumns][kRows / 4]) {
  Vector s[kColumns][kRows / 4] = {};
  for (int64_t p = k_begin; p < k_end; ++p) {
    Vector x[kRows / 4];
    std::memcpy(x, a + p * kRows, sizeof x);
    for (int j = 0; j < kColumns; ++j) {
      const float y = b[p * kColumns + j];
      for (int i = 0; i < kRows / 4; ++i) s[j][i] += x[i] * y;
    }
  }
  std::memcpy(sum, s, sizeof s);
}

void require(const MatmulOperand& o, const char* name) {
  if (o.data == nullptr) return;
  const Allocation* a = find_allocation(o.data);
  if (a == nullptr || !in_allocation(o.data, o.bytes)) {
    fail(cudaErrorIllegalAddress, std::string("cublasLtMatmul: ") + name + " has " +
                                      std::to_string(o.bytes) + " bytes beginning at " +
                                      describe_address(o.data));
  }
}

}  // namespace

void run_matmul(const MatmulProblem& p) {
  require(p.a, "A");
  require(p.b, "B");
  if (p.beta != 0) require(p.c, "C");
  require(p.d, "D");
  require(p.bias, "the bias");
  require(p.aux, "the auxiliary matrix");
  if (p.workspace_bytes != 0) {
    MatmulOperand workspace;
    workspace.data = p.workspace;
    workspace.bytes = p.workspace_bytes;
    require(workspace, "the workspace");
  }
  if (runtime().sticky != cudaSuccess) return;
  if (p.workspace_bytes != 0) std::memset(p.workspace, 0xff, p.workspace_bytes);

  std::vector<float> a, b;
  const int64_t chunks = (p.k + p.chunk - 1) / p.chunk;
  for (int64_t z = 0; z < p.batches; ++z) {
    pack(p.a, z * p.a.batch_stride, p.a.row_stride, p.m, kRows, p.a.column_stride, p.k, p.tf32, &a);
    pack(p.b, z * p.b.batch_stride, p.b.column_stride, p.n, kColumns, p.b.row_stride, p.k, p.tf32,
         &b);
    for (int64_t j0 = 0; j0 < p.n; j0 += kColumns) {
      for (int64_t i0 = 0; i0 < p.m; i0 += kRows) {
        Vector total[kColumns][kRows / 4] = {}, part[kColumns][kRows / 4];
        for (int64_t number = 0; number < chunks; ++number) {
          const int64_t begin = (p.backwards ? chunks - 1 - number : number) * p.chunk;
          tile(a.data() + i0 * p.k, b.data() + j0 * p.k, begin, std::min(begin + p.chunk, p.k),
               part);
          for (int j = 0; j < kColumns; ++j) {
            for (int i = 0; i < kRows / 4; ++i) total[j][i] += part[j][i];
          }
        }
        for (int64_t j = j0; j < std::min(j0 + kColumns, p.n); ++j) {
          for (int64_t i = i0; i < std::min(i0 + kRows, p.m); ++i) {
            float value = p.alpha * total[j - j0][(i - i0) / 4][(i - i0) % 4];
            if (p.beta != 0) {
              value += p.beta *
                       read(p.c, z * p.c.batch_stride + i * p.c.row_stride + j * p.c.column_stride);
            }
            if (p.bias.data != nullptr) value += read(p.bias, i);
            const int64_t aux_at = i * p.aux.row_stride + j * p.aux.column_stride;
            if (p.epilogue == Epilogue::kGeluBackward) {
              value *= gelu_derivative(read(p.aux, aux_at));
            } else if (p.aux.data != nullptr) {
              write(p.aux, aux_at, value);
            }
            if (p.epilogue == Epilogue::kRelu) value = std::max(value, 0.0f);
            if (p.epilogue == Epilogue::kGelu) value = gelu(value);
            write(p.d, z * p.d.batch_stride + i * p.d.row_stride + j * p.d.column_stride, value);
          }
        }
      }
    }
  }
}

}  // namespace heirloom::emulator
