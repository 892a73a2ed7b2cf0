// SPDX-License-Identifier: Apache-2.0
// Products with many rows of x in bfloat16 and float16 on dense tensor cores, from sm_80 on, for
// weights of any format: tile by tile W is expanded into shared memory, and what is not kept is a
// zero there. So an infinity or NaN in x reaches every feature of its row, as in a dense product.
//
// A block of threads owns 128 rows of W and 128 rows of x, a warp 32 x 64 of it. A warp expands 16
// rows of W. x is copied one tile ahead by cp.async; that W is not, two blocks of threads for each
// multiprocessor have to hide. Device code only.
#pragma once

#include <algorithm>

#include "base/cuda/epilogue.h"
#include "base/cuda/launch.h"
#include "base/cuda/tile_memory.h"

namespace sparsekern::cuda {

constexpr int kDenseThreads = 256;
constexpr int kDensePanelRows = 16;                                   // of a warp
constexpr int kDenseTileBytes = kDenseTile.features * kTileCols * 2;  // of W, and of x
constexpr int kDensePanelBytes = kDensePanelRows * kTileCols * 2;
static_assert(kDenseTile.features == kDenseTile.rows_of_x);
static_assert(kDenseTile.features / kDensePanelRows == kDenseThreads / 32);
constexpr int kDenseSharedBytes =
    std::max(3 * kDenseTileBytes, kDenseTile.rows_of_x* ResultStride(kDenseTile.features) * 4);

// d += a * b for 16 rows of W, 8 rows of x, 16 columns.
template <typename E>
__device__ __forceinline__ void Multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#define SPARSEKERN_MMA(TYPE)                                                       \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE              \
               ".f32 "                                                             \
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (__is_same(E, __half)) {
    SPARSEKERN_MMA("f16");
  } else {
    SPARSEKERN_MMA("bf16");
  }
#undef SPARSEKERN_MMA
}

// The body of a kernel of __launch_bounds__(kDenseThreads, 2) with kDenseSharedBytes dynamic shared
// memory and CountTiles(kDenseTile) blocks of threads, x as LinearCall says, 16-byte aligned and
// x_cols a multiple of 8. A structure that is not `consistent`, as Consistent(a) says, is not read.
//
// `expand` is one warp's: expand(panel, k, w) writes all columns 64 k .. 64 k + 63 of rows 16 panel
// .. 16 panel + 15 of W to w, as rows 0 .. 15 of RowOffset, zeros where nothing is kept, also
// beyond the matrix; all lanes call it together, k from 0 up.
template <typename E, typename Args, typename Expand>
__device__ __forceinline__ void MultiplyDense(const Args& a, bool consistent, Expand& expand) {
  constexpr int kFeatures = kDenseTile.features;
  constexpr int kTokens = kDenseTile.rows_of_x;
  constexpr int kStride = ResultStride(kFeatures);
  extern __shared__ __align__(128) uint8_t shared[];
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const ResultTile at = TileOfBlock(blockIdx.x, DivideUp(a.problem.rows, kFeatures),
                                    DivideUp(a.problem.x_rows, kTokens));
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_feature = warp / 2 * 32;
  const int first_token = warp % 2 * 64;

  float sum[2][8][4] = {};
  const int tiles = consistent ? static_cast<int>(DivideUp(a.problem.cols, kTileCols)) : 0;
  if (tiles > 0) {
    CopyRowsOfX<kTokens, kDenseThreads>(a, at.token * kTokens, 0, base + kDenseTileBytes);
  }
  CommitCopies();
  const RowAddress w_of_lane = DenseAOfLane(lane), x_of_lane = DenseBOfLane(lane);
  for (int k = 0; k < tiles; ++k) {
    const auto x_at = (1 + k % 2) * kDenseTileBytes;
    // The product of the last tile has been made by all.
    expand(at.feature * (kFeatures / kDensePanelRows) + warp, int64_t{k},
           shared + warp * kDensePanelBytes);
    if (k + 1 < tiles) {
      CopyRowsOfX<kTokens, kDenseThreads>(
          a, at.token * kTokens, int64_t{k + 1} * kTileCols,
          base + static_cast<uint32_t>(1 + (k + 1) % 2) * kDenseTileBytes);
    }
    CommitCopies();
    WaitCopies<1>();
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kTileCols / 16; ++q) {
      uint32_t w[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        LoadMatrices(w[i], base + RowOffset(first_feature + i * 16 + w_of_lane.row,
                                            q * 2 + w_of_lane.chunk));
      }
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t x[4];
        LoadMatrices(
            x,
            base + x_at + RowOffset(first_token + j * 8 + x_of_lane.row, q * 2 + x_of_lane.chunk));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Multiply<E>(sum[i][j], w[i], x[0], x[1]);
          Multiply<E>(sum[i][j + 1], w[i], x[2], x[3]);
        }
      }
    }
    __syncthreads();
  }
  WaitCopies<0>();
  __syncthreads();

  auto* result = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      PutFragment(result, kStride, first_feature + i * 16, first_token + j * 8, lane, sum[i][j]);
    }
  }
  __syncthreads();
  // Asked again, rather than a register kept for it throughout.
  StoreTile<E, kFeatures, kTokens, kDenseThreads>(a, Consistent(a), at, result, kStride);
}

// Launches such a kernel.
template <typename Args>
cudaError_t LaunchDense(void (*kernel)(Args), const Args& a, cudaStream_t stream) {
  return LaunchTiles(kernel, kDenseTile, kDenseThreads, kDenseSharedBytes, a, stream);
}

// launch.operator()<E, V>() for x of E, and values of V, which are int8 or of E.
template <typename Launch>
cudaError_t WithTensorTypes(const LinearProblem& problem, const Launch& launch) {
  const bool half = problem.x_dtype == DType::kF16;
  if (problem.value_dtype == DType::kI8) {
    return half ? launch.template operator()<__half, int8_t>()
                : launch.template operator()<__nv_bfloat16, int8_t>();
  }
  return half ? launch.template operator()<__half, __half>()
              : launch.template operator()<__nv_bfloat16, __nv_bfloat16>();
}

}  // namespace sparsekern::cuda
