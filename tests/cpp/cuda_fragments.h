// SPDX-License-Identifier: Apache-2.0
// What the tests of CUDA kernels without a GPU share: ldmatrix and mma emulated as the PTX ISA
// defines their fragments, tiles of x, and operands of small integers, whose sums are exact.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <vector>

#include "base/cuda/tiles.h"
#include "csr_case.h"

namespace sparsekern::cuda {

inline std::vector<float> SmallIntegers(int64_t count, uint64_t seed) {
  std::vector<float> out(static_cast<size_t>(count));
  testing::Random random(seed);
  for (float& v : out) v = static_cast<float>(random.Below(17) - 8);
  return out;
}

// The product with x as [x_rows][rows], of a matrix with its rows, cols and dense weights.
template <typename Packed>
std::vector<float> Expected(const Packed& p, const std::vector<float>& x, int64_t x_rows) {
  std::vector<float> y(static_cast<size_t>(x_rows * p.rows), 0.0f);
  for (int64_t m = 0; m < x_rows; ++m) {
    for (int64_t n = 0; n < p.rows; ++n) {
      for (int64_t k = 0; k < p.cols; ++k) {
        y[static_cast<size_t>(m * p.rows + n)] +=
            x[static_cast<size_t>(m * p.cols + k)] * p.dense[static_cast<size_t>(n * p.cols + k)];
      }
    }
  }
  return y;
}

// The banks, of 16 bytes, that eight addresses of one 8x8 matrix meet: all eight, or ldmatrix
// waits.
template <typename Offset>
void ExpectNoConflict(Offset offset) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::set<int> banks;
    for (int lane = matrix * 8; lane < matrix * 8 + 8; ++lane) {
      EXPECT_EQ(offset(lane) % 16, 0);
      banks.insert(offset(lane) / 16 % 8);
    }
    EXPECT_EQ(banks.size(), 8u);
  }
}

using Half = uint16_t;  // 16 bits that hold a small integer as bfloat16
struct Register {
  Half half[2];
};
struct Warp {
  Register r[32][4];
};

// ldmatrix.m8n8.x4: matrix i from the eight rows that lanes 8 i .. 8 i + 7 address. Lane l gets
// elements 2 (l % 4) and the next of row l / 4, or with .trans of column l / 4.
template <typename Offset>
Warp LoadMatrices(const std::vector<uint8_t>& shared, Offset offset, bool transposed) {
  Warp out;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      for (int h = 0; h < 2; ++h) {
        const int pair = 2 * (lane % 4) + h, other = lane / 4;
        const int row = transposed ? pair : other, col = transposed ? other : pair;
        const auto at = static_cast<size_t>(offset(8 * i + row) + 2 * col);
        EXPECT_LE(at + 2, shared.size());
        std::memcpy(&out.r[lane][i].half[h], shared.data() + at, 2);
      }
    }
  }
  return out;
}

// mma.m16n8k16 with 16-bit elements; b0 and b1 name the registers of `b` that are the operand's.
inline void Mma(float (&d)[32][4], const Warp& a, const Warp& b, int b0, int b1) {
  float dense_a[16][16], dense_b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    for (int h = 0; h < 2; ++h) {
      const int group = lane / 4, pair = 2 * (lane % 4) + h;
      for (int r = 0; r < 4; ++r) {
        dense_a[group + 8 * (r & 1)][pair + 8 * (r >> 1)] = F32FromBF16(a.r[lane][r].half[h]);
      }
      dense_b[pair][group] = F32FromBF16(b.r[lane][b0].half[h]);
      dense_b[pair + 8][group] = F32FromBF16(b.r[lane][b1].half[h]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 16; ++k) {
        d[lane][i] += dense_a[lane / 4 + 8 * (i >> 1)][k] * dense_b[k][2 * (lane % 4) + (i & 1)];
      }
    }
  }
}

// Rows of x of a tile of 64 columns in shared memory, as CopyRowsOfX leaves them; x beyond its
// columns is zero there.
inline void FillX(const std::vector<float>& x, int64_t x_rows, int64_t cols, int64_t first_row,
                  int64_t first_col, int rows, int at, std::vector<uint8_t>* shared) {
  for (int row = 0; row < rows; ++row) {
    for (int col = 0; col < kTileCols; ++col) {
      const int64_t m = first_row + row, k = first_col + col;
      const bool there = m < x_rows && k < cols;
      const Half v = BF16FromF32(there ? x[static_cast<size_t>(m * cols + k)] : 0.0f);
      std::memcpy(shared->data() + at + RowOffset(row, col / 8) + col % 8 * 2, &v, 2);
    }
  }
}

}  // namespace sparsekern::cuda
