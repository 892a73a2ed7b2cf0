// SPDX-License-Identifier: Apache-2.0
// nm_linear for 2:4 (and 1:2, which is 2:4 too) in bfloat16 and float16 on sparse tensor cores:
// mma.sp.m16n8k32, from sm_80 on. For many rows of x; limited by the tensor cores.
//
// A block of threads owns a tile of rows of W (features) and rows of x (tokens), a warp 64 x 64 or
// 64 x 32 of it. W is the instruction's sparse operand A, straight from the packed format: values
// of a panel are A compressed and transposed, which ldmatrix.trans turns; a row's word is its
// metadata (cuda_index.h). Four stages of 64 columns are under way by cp.async. The result goes
// through shared memory, so that it is written to y row by row.
#include "ops/nm_linear/cuda_launch.h"

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

template <int Features, int Tokens>
struct Tile {
  static constexpr int kPanels = Features / kNmPanelRows;
  static constexpr int kWarpFeatures = 64;
  static constexpr int kWarpTokens = Tokens / 2;
  static constexpr int kThreads = Features / kWarpFeatures * 2 * 32;
  static constexpr int kWordsAt = kPanels * kPanelTileBytes;  // in a stage
  static constexpr int kXAt = kWordsAt + kPanels * 2 * kNmPanelRows * 4;
  static constexpr int kStageBytes = SparseStageBytes(Features, Tokens);
  static_assert(kStageBytes == kXAt + Tokens * kTileCols * 2);
};

// Tile `k` of columns into a stage.
template <int Features, int Tokens>
__device__ __forceinline__ void CopyStage(const NmCudaArgs& a, const NmLayout& s, ResultTile at,
                                          int64_t k, uint32_t stage) {
  using T = Tile<Features, Tokens>;
  constexpr int kValueChunks = T::kPanels * kTileSteps * 2;
  constexpr int kWordChunks = T::kPanels * 2 * 4;
  static_assert(kValueChunks % T::kThreads == 0);
  const int64_t first_panel = at.feature * T::kPanels;
#pragma unroll
  for (int i = 0; i < kValueChunks / T::kThreads; ++i) {
    const int c = i * T::kThreads + static_cast<int>(threadIdx.x);
    const int panel = c / (kTileSteps * 2), step = c / 2 % kTileSteps, half = c % 2;
    const int64_t p = first_panel + panel, j = k * kTileSteps + step;
    const bool there = p < s.panels && j < s.steps;
    const auto* values = static_cast<const uint16_t*>(a.values) +
                         (there ? (p * s.steps + j) * kNmPanelRows + half * 8 : 0);
    CopyAsync(stage + ValueOffset(panel, step, half), values, there);
  }
  for (int c = static_cast<int>(threadIdx.x); c < kWordChunks; c += T::kThreads) {
    const int panel = c / 8, word = c / 4 % 2, lane = c % 4 * 4;
    const int64_t p = first_panel + panel, q = k * 2 + word;
    const bool there = p < s.panels && q < s.words;
    const uint8_t* words =
        a.structure + kNmHeaderBytes + (there ? ((p * s.words + q) * kNmPanelRows + lane) * 4 : 0);
    CopyAsync(stage + T::kWordsAt + WordOffset(T::kPanels, panel, word, lane), words, there);
  }
  CopyRowsOfX<Tokens, T::kThreads>(a, at.token * Tokens, k * kTileCols, stage + T::kXAt);
}

template <typename E, int Features, int Tokens>
__global__ void __launch_bounds__(Tile<Features, Tokens>::kThreads)
    SparseMmaKernel(const NmCudaArgs a) {
  using T = Tile<Features, Tokens>;
  constexpr int kWarpPanels = T::kWarpFeatures / kNmPanelRows;
  constexpr int kColumns = T::kWarpTokens / 8;  // n8 tiles of a warp
  extern __shared__ __align__(128) uint8_t shared[];
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));

  const NmLayout s = NmLayoutOf(a.problem.rows, a.problem.cols, 4, 2, a.problem.structure_bytes,
                                a.problem.value_count);
  const ResultTile at = TileOfBlock(blockIdx.x, DivideUp(a.problem.rows, Features),
                                    DivideUp(a.problem.x_rows, Tokens));
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_panel = warp / 2 * kWarpPanels;
  const int first_token = warp % 2 * T::kWarpTokens;

  float sum[kWarpPanels][kColumns][4] = {};
  const int64_t tiles = DivideUp(a.problem.cols, kTileCols);
#pragma unroll
  for (int stage = 0; stage < kSparseStages - 1; ++stage) {
    if (stage < tiles) {
      CopyStage<Features, Tokens>(a, s, at, stage, base + stage * T::kStageBytes);
    }
    CommitCopies();
  }

  const ValueAddress value_of_lane = SparseAOfLane(lane);
  const RowAddress x_of_lane = SparseBOfLane(lane);
  for (int64_t k = 0; k < tiles; ++k) {
    WaitCopies<kSparseStages - 2>();
    __syncthreads();  // tile k is there, and tile k - 1 has been read by all
    const int64_t next = k + kSparseStages - 1;
    if (next < tiles) {
      CopyStage<Features, Tokens>(
          a, s, at, next, base + static_cast<uint32_t>(next % kSparseStages) * T::kStageBytes);
    }
    CommitCopies();

    const int stage = static_cast<int>(k % kSparseStages) * T::kStageBytes;
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
        const uint8_t* words =
            shared + stage + T::kWordsAt +
            WordOffset(T::kPanels, first_panel + 2 * i + MetadataPanel(lane), half, lane / 4);
        metadata[i] =
            OrderedMetadata(Metadata(*reinterpret_cast<const uint32_t*>(words),
                                     *reinterpret_cast<const uint32_t*>(words + 32), lane));
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
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int feature = (first_panel + i) * kNmPanelRows + ResultFeature(lane, e);
        const int token = first_token + j * 8 + ResultToken(lane, e);
        result[token * kStride + feature] = sum[i][j][e];
      }
    }
  }
  __syncthreads();
  StoreTile<E, Features, Tokens, T::kThreads>(a, Consistent(a), at, result, kStride);
}

template <typename E, int Features, int Tokens>
cudaError_t LaunchTile(const NmCudaArgs& a, cudaStream_t stream) {
  constexpr int kBytes = SparseSharedBytes(Features, Tokens);
  const auto kernel = SparseMmaKernel<E, Features, Tokens>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const int64_t tiles = CountTiles(a.problem, {Features, Tokens});
  kernel<<<static_cast<unsigned>(tiles), Tile<Features, Tokens>::kThreads, kBytes, stream>>>(a);
  return cudaGetLastError();
}

template <typename E>
cudaError_t LaunchFor(const NmCudaArgs& a, cudaStream_t stream) {
  constexpr TileSize kLarge = kSparseTiles[0], kSmall = kSparseTiles[1];
  return a.plan.features == kLarge.features
             ? LaunchTile<E, kLarge.features, kLarge.rows_of_x>(a, stream)
             : LaunchTile<E, kSmall.features, kSmall.rows_of_x>(a, stream);
}

}  // namespace

cudaError_t LaunchSparseMma(const NmCudaArgs& a, cudaStream_t stream) {
  return a.problem.x_dtype == DType::kF16 ? LaunchFor<__half>(a, stream)
                                          : LaunchFor<__nv_bfloat16>(a, stream);
}

}  // namespace sparsekern::cuda
