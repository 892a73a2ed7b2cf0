// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for many rows of x, any dtypes, from sm_80 on: fp32 multiply-adds
// (base/cuda/fma.h).
#include "base/cuda/fma.h"
#include "ops/bitmap_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

// Two warps expand a panel, eight rows each; both count all of its bits.
class Expand {
 public:
  __device__ __forceinline__ Expand(const BitmapCudaArgs& a) : a_(a) {}

  __device__ __forceinline__ void operator()(int64_t feature, int64_t k, float* w) {
    const BitmapLayout s = BitmapLayoutOf(a_.problem.rows, a_.problem.cols);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int panel_in_tile = static_cast<int>(threadIdx.x) / 64;
    const int64_t panel = feature / kBitmapRows + panel_in_tile;
    if (panel >= s.panels) return;  // of the whole warp
    if (k == 0) next_ = PanelFirst(a_.structure, panel, a_.problem.value_count);
    const uint32_t bits =
        __ldg(reinterpret_cast<const uint32_t*>(a_.structure + SliceAt(s, panel, k)) + lane);
    const int own = CountBits(bits);
    const int until = SumOfLanesTo(lane, own);
    const int shift = PassShift(lane);
    const int64_t begin = next_;
    const int left = ValuesLeft(next_, a_.problem.value_count);
    next_ += __shfl_sync(0xffffffffu, until, 31);
    const int first_pass = static_cast<int>(threadIdx.x) / 32 % 2 * (kSlicePasses / 2);
#pragma unroll 1
    for (int pass = first_pass; pass < first_pass + kSlicePasses / 2; ++pass) {
      const uint32_t half = __shfl_sync(0xffffffffu, bits, PassHalf(pass, lane));
      const int first =
          __shfl_sync(0xffffffffu, until - own, PassHalf(pass, lane)) + ValuesBelow(half, shift);
      const uint32_t nibble = NibbleAt(half, shift);
      float* to =
          w + PassColumn(lane) * kFmaStride + panel_in_tile * kBitmapRows + PassRow(pass, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = first + NibblePosition(nibble, i);
        if (NibbleKeeps(nibble, i) != 0 && at < left) {
          to[i * kFmaStride] = LoadAsFloat(a_.values, begin + at, a_.problem.value_dtype);
        }
      }
    }
  }

 private:
  const BitmapCudaArgs& a_;
  int64_t next_ = 0;  // the first value of the next slice
};

__global__ void __launch_bounds__(kFmaThreads, 3) FmaKernel(const BitmapCudaArgs a) {
  Expand expand(a);
  MultiplyFma<kBitmapCols>(a, Consistent(a), expand);
}

}  // namespace

cudaError_t LaunchFma(const BitmapCudaArgs& a, cudaStream_t stream) {
  FmaKernel<<<static_cast<unsigned>(CountTiles(a.problem, kFmaTile)), kFmaThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace sparsekern::cuda
