// SPDX-License-Identifier: Apache-2.0
// nm_linear for 2:4 (and 1:2, which is 2:4 too) in bfloat16 and float16 on Hopper's sparse tensor
// cores: wgmma.mma_async.sp.m64nNk32, sm_90a. For many rows of x; limited by shared memory, from
// which x is read at its full rate while the products run (docs/kernels-cuda.md).
//
// A block of threads owns a tile of rows of W (features) and rows of x (tokens), a warpgroup 64
// rows of W and all tokens of it, a warp one panel. W is the sparse operand A in registers, with
// the fragments and metadata of mma.sp (cuda_index.h); x is read where cp.async left it, through a
// descriptor. Six stages of 64 columns: the products of one tile run while the next one's operands
// are loaded, so W has two sets of registers, and four more tiles are on their way.
#include "base/cuda/wgmma.h"
#include "ops/nm_linear/cuda_sparse_stage.h"

namespace sparsekern::cuda {
namespace {

// W of a warp's panel for 64 columns: each half's fragments, and the metadata of both.
struct Operand {
  uint32_t w[2][4];
  uint32_t metadata[1];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define SPARSEKERN_FOUR(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define SPARSEKERN_32(i)                                                                      \
  SPARSEKERN_FOUR(i), SPARSEKERN_FOUR(i + 1), SPARSEKERN_FOUR(i + 2), SPARSEKERN_FOUR(i + 3), \
      SPARSEKERN_FOUR(i + 4), SPARSEKERN_FOUR(i + 5), SPARSEKERN_FOUR(i + 6),                 \
      SPARSEKERN_FOUR(i + 7)
#define SPARSEKERN_0_TO_31                                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SPARSEKERN_32_TO_63                                                                    \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// After the operands: negate neither, x is [token][column].
#define SPARSEKERN_WGMMA_SP(N, TYPE, D, OPERANDS, ADD, ...)                                        \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD                                         \
               ", 0;\n"                                                                            \
               "wgmma.mma_async.sp.sync.aligned.m64n" N "k32.f32." TYPE "." TYPE " {" D            \
               "}, " OPERANDS ", add, 1, 1, 0;\n}\n"                                               \
               : __VA_ARGS__                                                                       \
               : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x), "r"(metadata), "n"(Selector), \
                 "r"(add))

// d = w * x, or d += w * x with `add`, for 64 rows of W, 128 or 64 rows of x, 32 columns; begins
// it.
template <typename E, int Selector>
__device__ __forceinline__ void MultiplyAsync(float (&d)[16][4], const uint32_t (&w)[4], uint64_t x,
                                              uint32_t metadata, int add) {
  if constexpr (__is_same(E, __half)) {
    SPARSEKERN_WGMMA_SP("128", "f16", SPARSEKERN_0_TO_31 ", " SPARSEKERN_32_TO_63,
                        "{%64, %65, %66, %67}, %68, %69, %70", "%71", SPARSEKERN_32(0),
                        SPARSEKERN_32(8));
  } else {
    SPARSEKERN_WGMMA_SP("128", "bf16", SPARSEKERN_0_TO_31 ", " SPARSEKERN_32_TO_63,
                        "{%64, %65, %66, %67}, %68, %69, %70", "%71", SPARSEKERN_32(0),
                        SPARSEKERN_32(8));
  }
}
template <typename E, int Selector>
__device__ __forceinline__ void MultiplyAsync(float (&d)[8][4], const uint32_t (&w)[4], uint64_t x,
                                              uint32_t metadata, int add) {
  if constexpr (__is_same(E, __half)) {
    SPARSEKERN_WGMMA_SP("64", "f16", SPARSEKERN_0_TO_31, "{%32, %33, %34, %35}, %36, %37, %38",
                        "%39", SPARSEKERN_32(0));
  } else {
    SPARSEKERN_WGMMA_SP("64", "bf16", SPARSEKERN_0_TO_31, "{%32, %33, %34, %35}, %36, %37, %38",
                        "%39", SPARSEKERN_32(0));
  }
}
#undef SPARSEKERN_WGMMA_SP
#undef SPARSEKERN_32_TO_63
#undef SPARSEKERN_0_TO_31
#undef SPARSEKERN_32
#undef SPARSEKERN_FOUR

#endif

template <int Features>
constexpr int kThreads = Features / 64 * 128;

template <typename E, int Features, int Tokens>
__global__ void __launch_bounds__(kThreads<Features>, 512 / kThreads<Features>)
    SparseWgmmaKernel(const NmCudaArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using T = SparseCopies<Features, Tokens, kThreads<Features>>;
  constexpr int kStageBytes = SparseStageBytes(Features, Tokens);
  constexpr int kStages = kWgmmaStages;
  constexpr int kColumns = Tokens / 8;
  static_assert(kStageBytes % kDescribedRowsBytes == 0 && T::kXAt % kDescribedRowsBytes == 0);
  extern __shared__ __align__(kDescribedRowsBytes) uint8_t stages[];
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(stages));

  const NmLayout s = SparseLayout(a);
  const ResultTile at = SparseTileOfBlock<Features, Tokens>(a);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int panel = static_cast<int>(threadIdx.x) / 32;
  const ValueAddress value_of_lane = SparseAOfLane(lane);
  const int tiles = static_cast<int>(DivideUp(a.problem.cols, kTileCols));

  T copies(a, s, at, static_cast<int>(threadIdx.x));
  const auto copy = [&](int k, int stage) {
    if (k < tiles) {
      copies.Next([&](int to, const void* from, bool there) {
        CopyAsync(base + static_cast<uint32_t>(stage * kStageBytes + to), from, there);
      });
    }
    CommitCopies();
  };
#pragma unroll
  for (int k = 0; k < kStages - 2; ++k) copy(k, k);

  float sum[kColumns][4];
  int stage = 0;  // of tile k
  const auto keep = [](Operand& a_of) {
    KeepUntilHere(a_of.w[0]);
    KeepUntilHere(a_of.w[1]);
    KeepUntilHere(a_of.metadata);
  };
  const auto multiply = [&](int k, Operand& a_of) {
    WaitCopies<kStages - 3>();
    ShowProducts();
    WaitProducts<1>();
    keep(a_of);
    __syncthreads();  // tile k is there, and all products of tile k - 2 have been made
    const int at_stage = stage * kStageBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      LoadTransposed(
          a_of.w[half],
          base + at_stage + ValueOffset(panel, half * 16 + value_of_lane.step, value_of_lane.half));
    }
    // Selector 0 is the first half of the columns, 1 the second.
    a_of.metadata[0] =
        LoadMetadata(stages + at_stage + T::kWordsAt +
                         WordOffset(T::kPanels, panel, MetadataSelector(lane), lane / 4),
                     lane);
    KeepUntilHere(a_of.metadata);
    FenceProducts();
    const uint32_t x = base + at_stage + T::kXAt;
    MultiplyAsync<E, 0>(sum, a_of.w[0], RowsDescriptor(x, 0), a_of.metadata[0], k != 0);
    MultiplyAsync<E, 1>(sum, a_of.w[1], RowsDescriptor(x, 4), a_of.metadata[0], 1);
    CommitProducts();
    copy(k + kStages - 2, WgmmaFreeStage(stage));
    stage = WgmmaNextStage(stage);
  };
  Operand even = {}, odd = {};
  for (int k = 0; k < tiles; k += 2) {
    multiply(k, even);
    if (k + 1 < tiles) multiply(k + 1, odd);
  }
  WaitProducts<0>();
  keep(even);
  keep(odd);
#pragma unroll
  for (int j = 0; j < kColumns; ++j) KeepUntilHere(sum[j]);
  WaitCopies<0>();
  __syncthreads();  // the stages become the result

  auto* result = reinterpret_cast<float*>(stages);
  constexpr int kStride = ResultStride(Features);
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    PutFragment(result, kStride, panel * kNmPanelRows, j * 8, lane, sum[j]);
  }
  __syncthreads();
  StoreTile<E, Features, Tokens, kThreads<Features>>(a, Consistent(a), at, result, kStride);
#else
  __trap();  // never chosen: DeviceLimits::wgmma
#endif
}

}  // namespace

cudaError_t LaunchSparseWgmma(const NmCudaArgs& a, cudaStream_t stream) {
  return WithSparseTile(a, [&]<typename E, int Features, int Tokens>() {
    return LaunchTiles(SparseWgmmaKernel<E, Features, Tokens>, {Features, Tokens},
                       kThreads<Features>, SparseSharedBytes(Features, Tokens, kWgmmaStages), a,
                       stream);
  });
}

}  // namespace sparsekern::cuda
