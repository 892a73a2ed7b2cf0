// SPDX-License-Identifier: Apache-2.0
// nm_linear for 2:4 (and 1:2, which is 2:4 too) in bfloat16 and float16 on sparse tensor cores:
// mma.sp.m16n8k32, from sm_80 on. For many rows of x; limited by the tensor cores.
//
// A block of threads owns a tile of rows of W (features) and rows of x (tokens), a warp 64 x 64 or
// 64 x 32 of it. W is the instruction's sparse operand A, straight from the packed format: values
// of a panel are A compressed and transposed, which ldmatrix.trans turns; a row's word is its
// metadata (cuda_index.h). Four stages of 64 columns are under way by cp.async. The result goes
// through shared memory, so that it is written to y row by row.
#include "ops/nm_linear/cuda_sparse_stage.h"

namespace sparsekern::cuda {
namespace {

// d += a * b for 16 rows of W, 8 rows of x, 32 columns.
#define SPARSEKERN_MMA_SP(TYPE, SELECTOR)                                                        \
  asm volatile(                                                                                  \
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE                \
      ".f32 "                                                                                    \
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, " SELECTOR \
      ";\n"                                                                                      \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                           \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),  \
        "r"(metadata))

template <typename T, int Selector>
__device__ __forceinline__ void MultiplySparse(float (&d)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[4], uint32_t metadata) {
  if constexpr (__is_same(T, __half)) {
    if constexpr (Selector == 0) SPARSEKERN_MMA_SP("f16", "0x0");
    if constexpr (Selector == 1) SPARSEKERN_MMA_SP("f16", "0x1");
  } else {
    if constexpr (Selector == 0) SPARSEKERN_MMA_SP("bf16", "0x0");
    if constexpr (Selector == 1) SPARSEKERN_MMA_SP("bf16", "0x1");
  }
}
#undef SPARSEKERN_MMA_SP

template <int Features>
constexpr int kThreads = Features / 64 * 2 * 32;  // two warps for 64 rows of W

template <typename E, int Features, int Tokens>
__global__ void __launch_bounds__(kThreads<Features>) SparseMmaKernel(const NmCudaArgs a) {
  using T = SparseCopies<Features, Tokens, kThreads<Features>>;
  constexpr int kStageBytes = SparseStageBytes(Features, Tokens);
  constexpr int kWarpPanels = 64 / kNmPanelRows;
  constexpr int kWarpTokens = Tokens / 2;
  constexpr int kColumns = kWarpTokens / 8;  // n8 tiles of a warp
  extern __shared__ __align__(128) uint8_t shared[];
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));

  const NmLayout s = SparseLayout(a);
  const ResultTile at = SparseTileOfBlock<Features, Tokens>(a);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_panel = warp / 2 * kWarpPanels;
  const int first_token = warp % 2 * kWarpTokens;

  float sum[kWarpPanels][kColumns][4] = {};
  const int64_t tiles = DivideUp(a.problem.cols, kTileCols);
  T copies(a, s, at, static_cast<int>(threadIdx.x));
  const auto copy = [&](int64_t k) {
    if (k < tiles) {
      const auto stage = base + static_cast<uint32_t>(k % kSparseStages) * kStageBytes;
      copies.Next(
          [&](int to, const void* from, bool there) { CopyAsync(stage + to, from, there); });
    }
    CommitCopies();
  };
#pragma unroll
  for (int k = 0; k < kSparseStages - 1; ++k) copy(k);

  const ValueAddress value_of_lane = SparseAOfLane(lane);
  const RowAddress x_of_lane = SparseBOfLane(lane);
  for (int64_t k = 0; k < tiles; ++k) {
    WaitCopies<kSparseStages - 2>();
    __syncthreads();  // tile k is there, and tile k - 1 has been read by all
    copy(k + kSparseStages - 1);

    const int stage = static_cast<int>(k % kSparseStages) * kStageBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // 32 columns
      uint32_t w[kWarpPanels][4];
      uint32_t metadata[kWarpPanels / 2];
#pragma unroll
      for (int i = 0; i < kWarpPanels; ++i) {
        LoadTransposed(w[i], base + stage +
                                 ValueOffset(first_panel + i, half * 16 + value_of_lane.step,
                                             value_of_lane.half));
      }
#pragma unroll
      for (int i = 0; i < kWarpPanels / 2; ++i) {
        metadata[i] =
            LoadMetadata(shared + stage + T::kWordsAt +
                             WordOffset(T::kPanels, first_panel + 2 * i + MetadataSelector(lane),
                                        half, lane / 4),
                         lane);
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        uint32_t x[4];
        LoadMatrices(
            x, base + stage + T::kXAt +
                   RowOffset(first_token + j * 8 + x_of_lane.row, half * 4 + x_of_lane.chunk));
#pragma unroll
        for (int i = 0; i < kWarpPanels; i += 2) {
          MultiplySparse<E, 0>(sum[i][j], w[i], x, metadata[i / 2]);
          MultiplySparse<E, 1>(sum[i + 1][j], w[i + 1], x, metadata[i / 2]);
        }
      }
    }
  }
  WaitCopies<0>();
  __syncthreads();  // the stages become the result

  auto* result = reinterpret_cast<float*>(shared);
  constexpr int kStride = ResultStride(Features);
#pragma unroll
  for (int i = 0; i < kWarpPanels; ++i) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      PutFragment(result, kStride, (first_panel + i) * kNmPanelRows, first_token + j * 8, lane,
                  sum[i][j]);
    }
  }
  __syncthreads();
  StoreTile<E, Features, Tokens, kThreads<Features>>(a, Consistent(a), at, result, kStride);
}

}  // namespace

cudaError_t LaunchSparseMma(const NmCudaArgs& a, cudaStream_t stream) {
  return WithSparseTile(a, [&]<typename E, int Features, int Tokens>() {
    return LaunchTiles(SparseMmaKernel<E, Features, Tokens>, {Features, Tokens}, kThreads<Features>,
                       SparseSharedBytes(Features, Tokens, kSparseStages), a, stream);
  });
}

}  // namespace sparsekern::cuda
