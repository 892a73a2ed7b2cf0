// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for many rows of x in bfloat16 and float16 (values of that dtype or int8), on dense
// tensor cores from sm_80 on (base/cuda/dense_mma.h).
//
// A warp goes through its panel from left to right, a slice a tile, so that where values begin is a
// running sum.
#include "base/cuda/dense_mma.h"
#include "ops/bitmap_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

template <typename E, typename V>
class Expand {
 public:
  __device__ __forceinline__ Expand(const BitmapCudaArgs& a) : a_(a) {}

  __device__ __forceinline__ void operator()(int64_t panel, int64_t k, uint8_t* w) {
    const BitmapLayout s = BitmapLayoutOf(a_.problem.rows, a_.problem.cols);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bool there = panel < s.panels;
    uint32_t bits = 0;
    if (there) {
      if (k == 0) next_ = PanelFirst(a_.structure, panel, a_.problem.value_count);
      bits = __ldg(reinterpret_cast<const uint32_t*>(a_.structure + SliceAt(s, panel, k)) + lane);
    }
    const int own = CountBits(bits);
    const int until = SumOfLanesTo(lane, own);
    const V* values = static_cast<const V*>(a_.values) + next_;
    const int left = ValuesLeft(next_, a_.problem.value_count);
    next_ += __shfl_sync(0xffffffffu, until, 31);
    const int shift = PassShift(lane), column = PassColumn(lane);
#pragma unroll 2
    for (int pass = 0; pass < kSlicePasses; ++pass) {
      const uint32_t half = __shfl_sync(0xffffffffu, bits, PassHalf(pass, lane));
      const int first =
          __shfl_sync(0xffffffffu, until - own, PassHalf(pass, lane)) + ValuesBelow(half, shift);
      const uint32_t nibble = NibbleAt(half, shift);
      struct alignas(4 * sizeof(E)) {
        E v[4];
      } columns;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = first + NibblePosition(nibble, i);
        columns.v[i] = FromFloat<E>(0.0f);
        if (NibbleKeeps(nibble, i) != 0 && at < left) {
          columns.v[i] = FromFloat<E>(ToFloat(values[at]));
        }
      }
      *reinterpret_cast<uint2*>(w + RowOffset(PassRow(pass, lane), column / 8) + column % 8 * 2) =
          *reinterpret_cast<const uint2*>(&columns);
    }
  }

 private:
  const BitmapCudaArgs& a_;
  int64_t next_ = 0;  // the first value of the next slice
};

template <typename E, typename V>
__global__ void __launch_bounds__(kDenseThreads, 2) DenseMmaKernel(const BitmapCudaArgs a) {
  Expand<E, V> expand(a);
  MultiplyDense<E>(a, Consistent(a), expand);
}

}  // namespace

cudaError_t LaunchDenseMma(const BitmapCudaArgs& a, cudaStream_t stream) {
  return WithTensorTypes(a.problem, [&]<typename E, typename V>() {
    return LaunchDense(DenseMmaKernel<E, V>, a, stream);
  });
}

}  // namespace sparsekern::cuda
