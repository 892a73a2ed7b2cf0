// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for a few rows of x, any dtypes, from sm_80 on: fp32 multiply-adds with what is
// kept and nothing else. Memory-bound: its limit is the packed bytes over the memory bandwidth;
// from about 60 % sparsity on, its instructions.
//
// A warp streams slices (cuda_stream.h). A lane has four columns of x for all 16 rows of a slice,
// in registers, and in each of eight passes a nibble of one row: one count of bits finds its
// values. Sums of 16 rows stay in registers until the end, where they are added across the lanes
// and then, in order, across the warps that share a panel: results are deterministic.
#include "ops/bitmap_linear/cuda_stream.h"

namespace sparsekern::cuda {
namespace {

// Four columns of a row of x from shared memory.
template <typename E>
__device__ __forceinline__ void LoadColumns(const uint8_t* from, float (&x)[4]) {
  struct alignas(4 * sizeof(E)) Columns {
    E v[4];
  };
  const Columns columns = *reinterpret_cast<const Columns*>(from);
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = ToFloat(columns.v[i]);
}

// Predicated: lanes that keep different weights must not part.
__device__ __forceinline__ void AddIfKept(float& sum, uint32_t kept, float weight, float x) {
  asm("{\n"
      ".reg .pred p;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "@p fma.rn.f32 %0, %2, %3, %0;\n"
      "}\n"
      : "+f"(sum)
      : "r"(kept), "f"(weight), "f"(x));
}

template <typename V, int MR>
class MultiplyAdd {
 public:
  static constexpr int kRowsOfX = MR;

  __device__ __forceinline__ MultiplyAdd(const BitmapCudaArgs& a, const uint8_t* shared)
      : shared_(shared), x_dtype_(a.problem.x_dtype) {}

  __device__ __forceinline__ void operator()(const Slice& slice) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float x[MR][4];
#pragma unroll
    for (int m = 0; m < MR; ++m) {
      const uint8_t* row = shared_ + slice.x;
      const int column = PassColumn(lane);
      if (x_dtype_ == DType::kF32) {
        LoadColumns<float>(row + m * XStride(4) + column * 4, x[m]);
      } else if (x_dtype_ == DType::kBF16) {
        LoadColumns<__nv_bfloat16>(row + m * XStride(2) + column * 2, x[m]);
      } else {
        LoadColumns<__half>(row + m * XStride(2) + column * 2, x[m]);
      }
    }
    const uint32_t below = BelowMask(PassShift(lane));
#pragma unroll
    for (int pass = 0; pass < kSlicePasses; ++pass) {
      const Nibble<V> n =
          LoadNibble<V>(shared_, slice, PassHalf(pass, lane), PassShift(lane), below);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float weight = ToFloat(n.v[i]);
#pragma unroll
        for (int m = 0; m < MR; ++m) {
          AddIfKept(sum_[pass][m], NibbleKeeps(n.kept, i), weight, x[m][i]);
        }
      }
    }
  }

  __device__ __forceinline__ void Store(float* sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int pass = 0; pass < kSlicePasses; ++pass) {
#pragma unroll
      for (int m = 0; m < MR; ++m) {
        float sum = sum_[pass][m];
#pragma unroll
        for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
        if (lane % 16 == 0) sums[m * kBitmapRows + PassRow(pass, lane)] = sum;
      }
    }
  }

 private:
  const uint8_t* shared_;
  DType x_dtype_;
  float sum_[kSlicePasses][MR] = {};
};

template <typename V, int MR>
__global__ void __launch_bounds__(kBitmapMaxWarps * 32) DecodeKernel(const BitmapCudaArgs a) {
  Decode<V, MultiplyAdd<V, MR>>(a);
}

template <typename V>
cudaError_t LaunchFor(const BitmapCudaArgs& a, cudaStream_t stream) {
  switch (a.plan.rows_of_x) {
    case 1: return LaunchStream(DecodeKernel<V, 1>, a, stream);
    case 4: return LaunchStream(DecodeKernel<V, 4>, a, stream);
    case 8: return LaunchStream(DecodeKernel<V, 8>, a, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t LaunchDecode(const BitmapCudaArgs& a, cudaStream_t stream) {
  switch (a.problem.value_dtype) {
    case DType::kF32: return LaunchFor<float>(a, stream);
    case DType::kBF16: return LaunchFor<__nv_bfloat16>(a, stream);
    case DType::kF16: return LaunchFor<__half>(a, stream);
    case DType::kI8: return LaunchFor<int8_t>(a, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsekern::cuda
