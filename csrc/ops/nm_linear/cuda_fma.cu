// SPDX-License-Identifier: Apache-2.0
// nm_linear for many rows of x, any pattern and dtypes, from sm_80 on: fp32 multiply-adds, where
// tensor cores would round. W is expanded tile by tile into shared memory; what is not kept is a
// zero there, which an infinity or NaN in x meets as in a dense product. Limited by multiply-adds.
//
// A block of threads owns 64 rows of W and 64 rows of x, a thread 4 x 4 of it.
#include "ops/nm_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

constexpr int kFeatures = kFmaTile.features;
constexpr int kTokens = kFmaTile.rows_of_x;
constexpr int kThreads = 256;
constexpr int kCols = 32;  // of a tile: a whole window of any pattern
constexpr int kStride = kFeatures + 4;
static_assert(kFeatures == kTokens);

__global__ void __launch_bounds__(kThreads) FmaKernel(const NmCudaArgs a) {
  __shared__ __align__(16) float w_tile[kCols * kStride];  // [column][feature]
  __shared__ __align__(16) float x_tile[kCols * kStride];  // [column][token]
  const NmLayout s = LayoutOnDevice(a);
  const NmTile at = TileOfBlock(blockIdx.x, NmDivideUp(a.problem.rows, kFeatures),
                                NmDivideUp(a.problem.x_rows, kTokens));
  const int thread = static_cast<int>(threadIdx.x);
  // Four threads expand a row of W.
  const int64_t panel = at.feature * (kFeatures / kNmPanelRows) + thread / 64;
  const int row = thread % kNmPanelRows;
  const int tile_steps = kCols / s.window * s.steps_per_window;
  const int fields = 32 / s.field_bits;
  const uint32_t reciprocal = NmReciprocal(s.steps_per_window);
  const auto* words = reinterpret_cast<const uint32_t*>(a.structure + kNmHeaderBytes);

  float sum[4][4] = {};
  const int feature = thread % 16 * 4, token = thread / 16 * 4;
  // With a header that contradicts the sizes nothing may be read by it; NaN is written then.
  const int64_t tiles = s.consistent ? NmDivideUp(a.problem.cols, kCols) : 0;
  for (int64_t k = 0; k < tiles; ++k) {
    for (int i = thread; i < kCols * kStride; i += kThreads) w_tile[i] = 0.0f;
    for (int i = thread; i < kCols * kTokens; i += kThreads) {
      const int64_t m = at.token * kTokens + i / kCols, column = k * kCols + i % kCols;
      const bool there = m < a.problem.x_rows && column < a.problem.cols;
      x_tile[i % kCols * kStride + i / kCols] =
          there ? LoadAsFloat(a.x, m * a.x_stride + column, a.problem.x_dtype) : 0.0f;
    }
    __syncthreads();
    if (panel < s.panels) {
      for (int j = thread / kNmPanelRows % 4; j < tile_steps; j += 4) {
        const int64_t step = k * tile_steps + j;
        if (step >= s.steps) break;
        const uint32_t word = __ldg(words + (panel * s.words + step / fields) * kNmPanelRows + row);
        const int column = NmWindowOf(j, reciprocal) * s.window +
                           NmColumn(word, static_cast<int>(step % fields), s.window);
        w_tile[column * kStride + thread / 64 * kNmPanelRows + row] = LoadAsFloat(
            a.values, (panel * s.steps + step) * kNmPanelRows + row, a.problem.value_dtype);
      }
    }
    __syncthreads();
#pragma unroll 8
    for (int column = 0; column < kCols; ++column) {
      const auto w = *reinterpret_cast<const float4*>(w_tile + column * kStride + feature);
      const auto x = *reinterpret_cast<const float4*>(x_tile + column * kStride + token);
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
                   Finish(a, s.consistent, y_col, sum[m][n]));
      }
    }
  }
}

}  // namespace

cudaError_t LaunchFma(const NmCudaArgs& a, cudaStream_t stream) {
  FmaKernel<<<static_cast<unsigned>(NmTiles(a.problem, kFmaTile)), kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace sparsekern::cuda
