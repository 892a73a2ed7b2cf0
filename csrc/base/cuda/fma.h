// SPDX-License-Identifier: Apache-2.0
// Products with many rows of x by fp32 multiply-adds, where tensor cores would round, for weights
// of any format and dtypes, from sm_80 on. W is expanded tile by tile into shared memory; what is
// not kept is a zero there, which an infinity or NaN in x meets as in a dense product. Limited by
// multiply-adds.
//
// A block of threads owns 64 rows of W and 64 rows of x, a thread 4 x 4 of it. Device code only.
#pragma once

#include "base/cuda/epilogue.h"

namespace sparsekern::cuda {

constexpr int kFmaThreads = 256;
constexpr int kFmaStride = kFmaTile.features + 4;  // floats between the columns of a tile
static_assert(kFmaTile.features == kFmaTile.rows_of_x);

// The body of a kernel of __launch_bounds__(kFmaThreads) with CountTiles(kFmaTile) blocks of
// threads. A structure that is not `consistent` is not read.
//
// expand(feature, k, w) stores the kept weights of rows feature .. feature + 63 of W in columns
// Cols k .. Cols k + Cols - 1 to w[(column - Cols k) * kFmaStride + row - feature], where zeros
// are; all threads call it together, k from 0 up.
template <int Cols, typename Expand>
__device__ __forceinline__ void MultiplyFma(const LinearCall& a, bool consistent, Expand& expand) {
  constexpr int kFeatures = kFmaTile.features;
  constexpr int kTokens = kFmaTile.rows_of_x;
  __shared__ __align__(16) float w_tile[Cols * kFmaStride];  // [column][feature]
  __shared__ __align__(16) float x_tile[Cols * kFmaStride];  // [column][token]
  const ResultTile at = TileOfBlock(blockIdx.x, DivideUp(a.problem.rows, kFeatures),
                                    DivideUp(a.problem.x_rows, kTokens));
  const int thread = static_cast<int>(threadIdx.x);

  float sum[4][4] = {};
  const int feature = thread % 16 * 4, token = thread / 16 * 4;
  const int64_t tiles = consistent ? DivideUp(a.problem.cols, Cols) : 0;
  for (int64_t k = 0; k < tiles; ++k) {
    for (int i = thread; i < Cols * kFmaStride; i += kFmaThreads) w_tile[i] = 0.0f;
    for (int i = thread; i < Cols * kTokens; i += kFmaThreads) {
      const int64_t m = at.token * kTokens + i / Cols, column = k * Cols + i % Cols;
      const bool there = m < a.problem.x_rows && column < a.problem.cols;
      x_tile[i % Cols * kFmaStride + i / Cols] =
          there ? LoadAsFloat(a.x, m * a.x_stride + column, a.problem.x_dtype) : 0.0f;
    }
    __syncthreads();
    expand(at.feature * kFeatures, k, w_tile);
    __syncthreads();
#pragma unroll 8
    for (int column = 0; column < Cols; ++column) {
      const auto w = *reinterpret_cast<const float4*>(w_tile + column * kFmaStride + feature);
      const auto x = *reinterpret_cast<const float4*>(x_tile + column * kFmaStride + token);
      const float ws[4] = {w.x, w.y, w.z, w.w}, xs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) sum[m][n] = fmaf(ws[n], xs[m], sum[m][n]);
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int64_t y_row = at.token * kTokens + token + m;
      const int64_t y_col = at.feature * kFeatures + feature + n;
      if (y_row < a.problem.x_rows && y_col < a.problem.rows) {
        StoreFloat(a.y, y_row * a.problem.rows + y_col, a.problem.x_dtype,
                   Finish(a, consistent, y_col, sum[m][n]));
      }
    }
  }
}

}  // namespace sparsekern::cuda
