// SPDX-License-Identifier: Apache-2.0
// gqs_linear for many rows of x in bfloat16 and float16 on dense tensor cores, from sm_80 on
// (base/cuda/dense_mma.h). Weights are rounded to x's dtype.
#include "base/cuda/dense_mma.h"
#include "ops/gqs_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

// Four threads have two rows of W: of each unit that is kept each loads 16 bytes, four columns, and
// stores those of one field. Where the next kept unit lies is counted along the row.
template <typename E>
class Expand {
 public:
  __device__ __forceinline__ Expand(const GqsCudaArgs& a, const GqsLayout& s) : a_(a), s_(s) {}

  __device__ __forceinline__ void operator()(int64_t panel, int64_t k, uint8_t* w) {
    const int lane = static_cast<int>(threadIdx.x) % 32, quarter = lane % 4;
    constexpr int kUnits = kTileCols / kGqsUnit;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int in_panel = lane / 4 + 8 * half;
      const int64_t row = panel * kDensePanelRows + in_panel;
      const bool there = row < s_.rows;
      // Asked again for each tile, rather than a register kept for it throughout.
      const int64_t next =
          there ? GqsFirstUnit(s_, a_.structure, row) + (half == 0 ? upper_ : lower_) : 0;
      const float factor = there ? RowFactor(a_, s_, row) : 1.0f;
      const uint32_t kept = there ? GqsUnitMask(s_, a_.structure, row, k * kUnits, kUnits) : 0;
#pragma unroll 2
      for (int j = 0; j < kUnits; ++j) {
        struct alignas(8) Four {
          E w[4];
        };
        Four four;
        const int64_t unit = GqsKeptUnit(s_, next, kept, j);
        const FourWeights weights = unit >= 0 ? WeightsOf(a_, s_, unit, quarter, factor)
                                              : FourWeights{{0.0f, 0.0f, 0.0f, 0.0f}};
        // Beyond the columns a code is 0, which less a large zero-point may be an infinity of E.
        const int64_t column = k * kTileCols + j * kGqsUnit + quarter * 4;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          four.w[c] = FromFloat<E>(column + c < s_.cols ? weights.w[c] : 0.0f);
        }
        *reinterpret_cast<Four*>(w + GqsTileOffset(in_panel, j, quarter)) = four;
      }
      (half == 0 ? upper_ : lower_) += GqsOnes(kept);
    }
  }

 private:
  const GqsCudaArgs& a_;
  const GqsLayout& s_;
  int upper_ = 0, lower_ = 0;  // kept units of the rows in the tiles before
};

template <typename E>
__global__ void __launch_bounds__(kDenseThreads, 2) GqsDenseMmaKernel(const GqsCudaArgs a) {
  __shared__ GqsLayout s;
  if (threadIdx.x == 0) s = LayoutOnDevice(a);
  __syncthreads();
  Expand<E> expand(a, s);
  MultiplyDense<E>(a, s.consistent, expand);
}

}  // namespace

cudaError_t LaunchGqsDenseMma(const GqsCudaArgs& a, cudaStream_t stream) {
  return a.problem.x_dtype == DType::kF16
             ? LaunchDense(GqsDenseMmaKernel<__half>, a, stream)
             : LaunchDense(GqsDenseMmaKernel<__nv_bfloat16>, a, stream);
}

}  // namespace sparsekern::cuda
