// SPDX-License-Identifier: Apache-2.0
//
// Which element of a matrix each register of each lane holds, in mma.m16n8k16 and ldmatrix, held
// against two statements that were written without regard to the emulator:
//   (1) the formulas and figures of the PTX ISA ("Matrix Fragments for mma.m16n8k16 with floating
//       point type", "ldmatrix");
//   (2) the layouts of CuTe, include/cute/atom/mma_traits_sm80.hpp
//       (SM80_16x8x16_F32BF16BF16F32_TN) and copy_traits_sm75.hpp (SM75_U32x{2,4}_LDSM_N,
//       SM75_U16x{4,8}_LDSM_T).
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/ptx.cuh"

namespace heirloom::cuda {
namespace {

/// A layout of CuTe: a coordinate is taken apart by the shape, leftmost fastest, and weighted with
/// the strides. Two modes, each flattened: (lane, value).
struct Mode {
  std::vector<int> shape, stride;
  int operator()(int i) const {
    int at = 0;
    for (size_t k = 0; k < shape.size(); ++k) {
      at += i % shape[k] * stride[k];
      i /= shape[k];
    }
    return at;
  }
};
struct Layout {
  Mode lane, value;
  int operator()(int l, int v) const { return lane(l) + value(v); }
};

struct Position {
  int row, column;
  bool operator==(const Position&) const = default;
};

// (2). An index into a matrix counts down its columns.
const Layout kCuteA{{{4, 8}, {32, 1}}, {{2, 2, 2}, {16, 8, 128}}};  // (M16, K16)
const Layout kCuteB{{{4, 8}, {16, 1}}, {{2, 2}, {8, 64}}};          // (N8, K16)
const Layout kCuteC{{{4, 8}, {32, 1}}, {{2, 2}, {16, 8}}};          // (M16, N8)
Position cute_a(int lane, int i) { return {kCuteA(lane, i) % 16, kCuteA(lane, i) / 16}; }
Position cute_b(int lane, int i) { return {kCuteB(lane, i) / 8, kCuteB(lane, i) % 8}; }  // (k, n)
Position cute_c(int lane, int i) { return {kCuteC(lane, i) % 16, kCuteC(lane, i) / 16}; }

// (1). groupID = %laneid >> 2, threadID_in_group = %laneid % 4.
Position isa_a(int lane, int i) {
  const int group = lane >> 2, member = lane % 4;
  const int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
  const int column = i < 4 ? (member * 2) + (i & 0x1) : (member * 2) + (i & 0x1) + 8;
  return {row, column};
}
Position isa_b(int lane, int i) {
  const int group = lane >> 2, member = lane % 4;
  const int row = i < 2 ? (member * 2) + (i & 0x1) : (member * 2) + (i & 0x1) + 8;
  return {row, group};
}
Position isa_c(int lane, int i) {
  const int group = lane >> 2, member = lane % 4;
  return {i < 2 ? group : group + 8, (member * 2) + (i & 0x1)};
}

struct Statement {
  std::string name;
  Position (*a)(int, int);
  Position (*b)(int, int);
  Position (*c)(int, int);
};
const Statement kStatements[] = {{"PTX ISA", isa_a, isa_b, isa_c},
                                 {"CuTe", cute_a, cute_b, cute_c}};

TEST(Fragments, TheStatementsAgree) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) EXPECT_EQ(isa_a(lane, i), cute_a(lane, i)) << lane << " " << i;
    for (int i = 0; i < 4; ++i) EXPECT_EQ(isa_b(lane, i), cute_b(lane, i)) << lane << " " << i;
    for (int i = 0; i < 4; ++i) EXPECT_EQ(isa_c(lane, i), cute_c(lane, i)) << lane << " " << i;
  }
}

template <class T>
class Pinned {
 public:
  explicit Pinned(size_t n) {
    check(cudaHostAlloc(&data_, n * sizeof(T), cudaHostAllocDefault), "pinned memory");
    std::fill_n(data_, n, T{});
  }
  ~Pinned() { cudaFreeHost(data_); }
  Pinned(const Pinned&) = delete;
  T* get() { return data_; }
  T& operator[](size_t i) { return data_[i]; }

 private:
  T* data_ = nullptr;
};

__global__ void mma_kernel(const Fragment4* a, const Fragment2* b, const Accumulator* c,
                           Accumulator* d) {
  d[threadIdx.x] = mma_m16n8k16(a[threadIdx.x], b[threadIdx.x], c[threadIdx.x]);
}

struct Mma {
  Pinned<Fragment4> a{32};
  Pinned<Fragment2> b{32};
  Pinned<Accumulator> c{32}, d{32};

  void set_a(int lane, int i, float x) { set(a[static_cast<size_t>(lane)].x[i / 2], i % 2, x); }
  void set_b(int lane, int i, float x) { set(b[static_cast<size_t>(lane)].x[i / 2], i % 2, x); }
  void set_c(int lane, int i, float x) { c[static_cast<size_t>(lane)].x[i] = x; }
  float get_d(int lane, int i) { return d[static_cast<size_t>(lane)].x[i]; }
  void run() {
    launch(mma_kernel, 1, 32, 0, Stream{}, a.get(), b.get(), c.get(), d.get());
    check(cudaDeviceSynchronize(), "mma");
  }
  // The lower-numbered element is in the lower half of its register.
  static void set(uint32_t& word, int half, float x) {
    const uint32_t bits = bfloat16(x).bits;
    word = half == 0 ? (word & 0xffff0000u) | bits : (word & 0xffffu) | bits << 16;
  }
};

// One element of A at a time against a B all of whose elements differ: row and column are both
// seen. Then the same for B.
TEST(Fragments, MmaElementByElement) {
  for (const Statement& s : kStatements) {
    for (const bool probe_a : {true, false}) {
      Mma mma;
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < (probe_a ? 4 : 8); ++i) {
          const Position p = probe_a ? s.b(lane, i) : s.a(lane, i);
          const auto x = static_cast<float>(p.row * (probe_a ? 8 : 16) + p.column + 1);
          probe_a ? mma.set_b(lane, i, x) : mma.set_a(lane, i, x);
        }
      }
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < (probe_a ? 8 : 4); ++i) {
          probe_a ? mma.set_a(lane, i, 1) : mma.set_b(lane, i, 1);
          mma.run();
          probe_a ? mma.set_a(lane, i, 0) : mma.set_b(lane, i, 0);
          const Position p = probe_a ? s.a(lane, i) : s.b(lane, i);
          for (int l = 0; l < 32; ++l) {
            for (int j = 0; j < 4; ++j) {
              const Position q = s.c(l, j);
              float expected = 0;
              if (probe_a && q.row == p.row) {
                expected = static_cast<float>(p.column * 8 + q.column + 1);
              }
              if (!probe_a && q.column == p.column) {
                expected = static_cast<float>(q.row * 16 + p.row + 1);
              }
              ASSERT_EQ(mma.get_d(l, j), expected) << s.name << " lane " << lane << " " << i;
            }
          }
        }
      }
    }
  }
}

TEST(Fragments, MmaAddsC) {
  Mma mma;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) mma.set_c(lane, i, static_cast<float>(4 * lane + i));
  }
  mma.run();
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) EXPECT_EQ(mma.get_d(lane, i), static_cast<float>(4 * lane + i));
  }
}

// Sums as emulator/ptx.h promises: c first, then the products in the order of k, in float32.
TEST(Fragments, MmaOfWholeMatrices) {
  for (const Statement& s : kStatements) {
    float a[16][16], b[16][8], c[16][8];
    uint32_t state = 12345;
    const auto next = [&] {
      state = state * 1664525u + 1013904223u;
      return static_cast<float>(bfloat16(static_cast<float>(state >> 8) * 0x1p-23f - 1.0f));
    };
    for (auto& row : a) std::generate(std::begin(row), std::end(row), next);
    for (auto& row : b) std::generate(std::begin(row), std::end(row), next);
    for (auto& row : c) std::generate(std::begin(row), std::end(row), next);
    Mma mma;
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i) mma.set_a(lane, i, a[s.a(lane, i).row][s.a(lane, i).column]);
      for (int i = 0; i < 4; ++i) mma.set_b(lane, i, b[s.b(lane, i).row][s.b(lane, i).column]);
      for (int i = 0; i < 4; ++i) mma.set_c(lane, i, c[s.c(lane, i).row][s.c(lane, i).column]);
    }
    mma.run();
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const Position p = s.c(lane, i);
        float sum = c[p.row][p.column];
        for (int k = 0; k < 16; ++k) sum += a[p.row][k] * b[k][p.column];
        ASSERT_EQ(mma.get_d(lane, i), sum) << s.name;
      }
    }
  }
}

// ---- ldmatrix ----

// (2). From (lane, bit) to a bit of the matrices, row by row: 128 bits each, 8 rows to a matrix.
const Layout kCutePlain{{{32}, {32}}, {{32, 4}, {1, 1024}}};                      // LDSM_N
const Layout kCuteTransposed{{{4, 8}, {256, 16}}, {{16, 2, 4}, {1, 128, 1024}}};  // LDSM_T
const Layout kCuteSource4{{{32}, {128}}, {{128}, {1}}};
const Layout kCuteSource2{{{16, 2}, {128, 0}}, {{128}, {1}}};

/// Which element of which row of which matrix.
struct Source {
  int matrix, row, element;
  bool operator==(const Source&) const = default;
};
// Half h of register r of a lane.
Source cute_source(bool transposed, int lane, int r, int h) {
  const int bit = (transposed ? kCuteTransposed : kCutePlain)(lane, 32 * r + 16 * h);
  return {bit / 1024, bit % 1024 / 128, bit % 128 / 16};
}
// (1). "each thread loads a fragment of a row: thread T of row T/4, elements 2 (T%4) and the next";
// with .trans "the matrix is loaded in column-major format".
Source isa_source(bool transposed, int lane, int r, int h) {
  const int row = lane / 4, element = 2 * (lane % 4) + h;
  return transposed ? Source{r, element, row} : Source{r, row, element};
}

__global__ void ldmatrix_kernel(const uint16_t* elements, const int* row_of_lane, int which,
                                uint32_t* out) {
  DYN_SMEM(bytes);
  auto* shared = reinterpret_cast<uint16_t*>(bytes);
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 40 * 8; i += 32) shared[i] = elements[i];
  __syncwarp();
  const uint16_t* row = shared + 8 * row_of_lane[lane];
  if (which < 2) {
    const Fragment4 f = which == 0 ? ldmatrix_x4(row) : ldmatrix_x4_trans(row);
    for (unsigned r = 0; r < 4; ++r) out[4 * lane + r] = f.x[r];
  } else {
    const Fragment2 f = which == 2 ? ldmatrix_x2(row) : ldmatrix_x2_trans(row);
    for (unsigned r = 0; r < 2; ++r) out[4 * lane + r] = f.x[r];
  }
}

TEST(Fragments, LdmatrixStatementsAgree) {
  for (const bool transposed : {false, true}) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i) {
        EXPECT_EQ(isa_source(transposed, lane, i / 2, i % 2),
                  cute_source(transposed, lane, i / 2, i % 2));
      }
    }
  }
  // Lanes 8m to 8m + 7 name the rows of matrix m.
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(kCuteSource4(lane, 0), 128 * lane);
    if (lane < 16) {
      EXPECT_EQ(kCuteSource2(lane, 0), 128 * lane);
    }
  }
}

TEST(Fragments, LdmatrixElementByElement) {
  Pinned<uint16_t> elements(40 * 8);
  Pinned<int> row_of_lane(32);
  Pinned<uint32_t> out(128);
  for (size_t i = 0; i < 40 * 8; ++i) elements[i] = static_cast<uint16_t>(1000 + i);
  // Rows lie anywhere.
  for (int lane = 0; lane < 32; ++lane) row_of_lane[static_cast<size_t>(lane)] = lane * 27 % 40;
  for (int which = 0; which < 4; ++which) {
    const bool transposed = which % 2 == 1;
    const int registers = which < 2 ? 4 : 2;
    launch(ldmatrix_kernel, 1, 32, 40 * 16, Stream{}, elements.get(), row_of_lane.get(), which,
           out.get());
    check(cudaDeviceSynchronize(), "ldmatrix");
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 2 * registers; ++i) {
        const uint32_t word = out[static_cast<size_t>(4 * lane + i / 2)];
        const uint32_t got = i % 2 == 0 ? word & 0xffffu : word >> 16;
        for (const Source& s : {isa_source(transposed, lane, i / 2, i % 2),
                                cute_source(transposed, lane, i / 2, i % 2)}) {
          const int row = row_of_lane[static_cast<size_t>(8 * s.matrix + s.row)];
          ASSERT_EQ(got, static_cast<uint32_t>(1000 + 8 * row + s.element))
              << which << " lane " << lane << " " << i;
        }
      }
    }
  }
}

// What attention relies on: the C of one product is the A of the next without any exchange.
TEST(Fragments, AnAccumulatorIsHalfOfAnOperand) {
  for (const Statement& s : kStatements) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i) {
        const Position a = s.a(lane, i), c = s.c(lane, i % 4);
        EXPECT_EQ(a.row, c.row);
        EXPECT_EQ(a.column, c.column + 8 * (i / 4));
      }
    }
  }
}

// ---- conversions ----

__global__ void convert_kernel(const float* x, uint32_t* pair, uint16_t* one, float* power) {
  const unsigned i = threadIdx.x;
  pair[i] = pack_bf16x2(x[2 * i], x[2 * i + 1]);
  one[2 * i] = to_bf16(bf16_low(pair[i])).bits;
  one[2 * i + 1] = to_bf16(bf16_high(pair[i])).bits;
  power[i] = exp2_approx(x[i]);
}

TEST(Fragments, PairsAreRoundedToNearestEven) {
  Pinned<float> x(64), power(32);
  Pinned<uint32_t> pair(32);
  Pinned<uint16_t> one(64);
  const float odd[] = {1.0f, 1.00390625f, 1.01171875f, -1.00390625f, 3.4e38f, 1e-40f, 0.0f, -0.0f};
  for (size_t i = 0; i < 64; ++i) {
    x[i] = i < 8 ? odd[i] : static_cast<float>(i * i) * 0.731f - 140.0f;
  }
  launch(convert_kernel, 1, 32, 0, Stream{}, x.get(), pair.get(), one.get(), power.get());
  check(cudaDeviceSynchronize(), "conversions");
  for (size_t i = 0; i < 64; ++i) {
    const uint16_t expected = bfloat16(x[i]).bits;
    EXPECT_EQ(i % 2 == 0 ? pair[i / 2] & 0xffffu : pair[i / 2] >> 16, expected);
    EXPECT_EQ(one[i], expected);
  }
  EXPECT_EQ(one[1], 0x3f80);  // a tie goes to the even neighbour
  EXPECT_EQ(one[2], 0x3f82);
  for (size_t i = 0; i < 32; ++i) {
    const float y = std::exp2(x[i]);
    EXPECT_EQ(power[i], y < 0x1p-126f ? 0.0f : y);
  }
}

}  // namespace
}  // namespace heirloom::cuda
