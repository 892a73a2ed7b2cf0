// SPDX-License-Identifier: Apache-2.0
// nm_linear for many rows of x, any pattern, in bfloat16 and float16 (values of that dtype or
// int8), on dense tensor cores from sm_80 on: tile by tile W is expanded into shared memory, and
// what is not kept is a zero there. So an infinity or NaN in x reaches every feature of its row, as
// in a dense product.
//
// A block of threads owns 128 rows of W and 128 rows of x, a warp 32 x 64 of it. A warp expands one
// panel. x is copied one tile ahead by cp.async; that W is not, two blocks of threads for each
// multiprocessor have to hide.
#include "ops/nm_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

constexpr int kFeatures = kDenseTile.features;
constexpr int kTokens = kDenseTile.rows_of_x;
constexpr int kThreads = 256;
constexpr int kTileBytes = kFeatures * kTileCols * 2;  // of W, and of x
static_assert(kFeatures == kTokens && kFeatures / kNmPanelRows == kThreads / 32);
constexpr int kStride = SparseResultStride(kFeatures);
constexpr int kSharedBytes = std::max(3 * kTileBytes, kTokens * kStride * 4);

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

// Panel `panel` of the tile, columns from 64 k on, into w (zeros before), in the order of
// RowOffset.
template <typename E, typename V>
__device__ __forceinline__ void Expand(const NmCudaArgs& a, const NmLayout& s, int64_t first_panel,
                                       int panel, int64_t k, uint8_t* w) {
  if (first_panel + panel >= s.panels) return;
  const int lane = static_cast<int>(threadIdx.x) % kNmPanelRows;
  const int tile_steps = kTileCols / s.window * s.steps_per_window;
  const int64_t begin = k * tile_steps;
  const int count = static_cast<int>(s.steps - begin < tile_steps ? s.steps - begin : tile_steps);
  const int fields = 32 / s.field_bits;  // a power of two
  const int offset = static_cast<int>(begin & (fields - 1));
  const uint32_t reciprocal = NmReciprocal(s.steps_per_window);
  const V* values = static_cast<const V*>(a.values) +
                    ((first_panel + panel) * s.steps + begin) * kNmPanelRows + lane;
  const auto* words = reinterpret_cast<const uint32_t*>(a.structure + kNmHeaderBytes) +
                      ((first_panel + panel) * s.words + begin / fields) * kNmPanelRows + lane;
#pragma unroll 2
  for (int j = static_cast<int>(threadIdx.x) % 32 / kNmPanelRows; j < count; j += 2) {
    const uint32_t word = __ldg(words + (offset + j) / fields * kNmPanelRows);
    const int column = NmWindowOf(j, reciprocal) * s.window +
                       NmColumn(word, (offset + j) & (fields - 1), s.window);
    E* to = reinterpret_cast<E*>(w + RowOffset(panel * kNmPanelRows + lane, column / 8));
    to[column % 8] = FromFloat<E>(ToFloat(values[j * kNmPanelRows]));
  }
}

template <typename E, typename V>
__global__ void __launch_bounds__(kThreads, 2) DenseMmaKernel(const NmCudaArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const NmLayout s = LayoutOnDevice(a);
  const NmTile at = TileOfBlock(blockIdx.x, NmDivideUp(a.problem.rows, kFeatures),
                                NmDivideUp(a.problem.x_rows, kTokens));
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_feature = warp / 2 * 32;
  const int first_token = warp % 2 * 64;

  float sum[2][8][4] = {};
  // With a header that contradicts the sizes nothing may be read by it; StoreTile writes NaN then.
  const int tiles = s.consistent ? static_cast<int>(NmDivideUp(a.problem.cols, kTileCols)) : 0;
  if (tiles > 0) {
    CopyRowsOfX<kTokens, kThreads>(a, at.token * kTokens, 0, base + kTileBytes);
  }
  CommitCopies();
  const RowAddress w_of_lane = DenseAOfLane(lane), x_of_lane = DenseBOfLane(lane);
  for (int k = 0; k < tiles; ++k) {
    const auto x_at = (1 + k % 2) * kTileBytes;
    // Each warp clears the panel that it fills; the product of the last tile has been made by all.
#pragma unroll
    for (int i = 0; i < kNmPanelRows * kTileCols * 2 / 16 / 32; ++i) {
      *reinterpret_cast<uint4*>(shared + warp * kNmPanelRows * kTileCols * 2 +
                                (i * 32 + lane) * 16) = make_uint4(0, 0, 0, 0);
    }
    __syncwarp();
    Expand<E, V>(a, s, at.feature * (kFeatures / kNmPanelRows), warp, k, shared);
    if (k + 1 < tiles) {
      CopyRowsOfX<kTokens, kThreads>(a, at.token * kTokens, int64_t{k + 1} * kTileCols,
                                     base + static_cast<uint32_t>(1 + (k + 1) % 2) * kTileBytes);
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
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int feature = first_feature + i * 16 + ResultFeature(lane, e);
        const int token = first_token + j * 8 + ResultToken(lane, e);
        result[token * kStride + feature] = sum[i][j][e];
      }
    }
  }
  __syncthreads();
  StoreTile<E, kFeatures, kTokens, kThreads>(a, at, result, kStride);
}

template <typename E, typename V>
cudaError_t LaunchFor(const NmCudaArgs& a, cudaStream_t stream) {
  const auto kernel = DenseMmaKernel<E, V>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const int64_t tiles = NmTiles(a.problem, kDenseTile);
  kernel<<<static_cast<unsigned>(tiles), kThreads, kSharedBytes, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchDenseMma(const NmCudaArgs& a, cudaStream_t stream) {
  const bool half = a.problem.x_dtype == DType::kF16;
  if (a.problem.value_dtype == DType::kI8) {
    return half ? LaunchFor<__half, int8_t>(a, stream)
                : LaunchFor<__nv_bfloat16, int8_t>(a, stream);
  }
  return half ? LaunchFor<__half, __half>(a, stream)
              : LaunchFor<__nv_bfloat16, __nv_bfloat16>(a, stream);
}

}  // namespace sparsekern::cuda
