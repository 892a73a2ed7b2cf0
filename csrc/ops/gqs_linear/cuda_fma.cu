// SPDX-License-Identifier: Apache-2.0
// gqs_linear for many rows of x in float32, from sm_80 on: fp32 multiply-adds (base/cuda/fma.h).
#include "base/cuda/fma.h"
#include "ops/gqs_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

constexpr int kUnits = 2;  // of a tile's columns
static_assert(kFmaThreads / 4 == kFmaTile.features);

// Four threads expand a row of W, four columns of a unit each.
class Expand {
 public:
  __device__ __forceinline__ Expand(const GqsCudaArgs& a, const GqsLayout& s) : a_(a), s_(s) {}

  __device__ __forceinline__ void operator()(int64_t feature, int64_t k, float* w) {
    const int in_tile = static_cast<int>(threadIdx.x) / 4;
    const int quarter = static_cast<int>(threadIdx.x) % 4;
    const int64_t row = feature + in_tile;
    if (row >= s_.rows) return;
    if (k == 0) next_ = GqsFirstUnit(s_, a_.structure, row);
    const float factor = RowFactor(a_, s_, row);
    const uint32_t kept = GqsUnitMask(s_, a_.structure, row, k * kUnits, kUnits);
#pragma unroll
    for (int j = 0; j < kUnits; ++j) {
      const int64_t unit = GqsKeptUnit(s_, next_, kept, j);
      if (unit < 0) continue;
      const FourWeights weights = WeightsOf(a_, s_, unit, quarter, factor);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        w[(j * kGqsUnit + quarter * 4 + c) * kFmaStride + in_tile] = weights.w[c];
      }
    }
    next_ += GqsOnes(kept);
  }

 private:
  const GqsCudaArgs& a_;
  const GqsLayout& s_;
  int64_t next_ = 0;
};

__global__ void __launch_bounds__(kFmaThreads) GqsFmaKernel(const GqsCudaArgs a) {
  const GqsLayout s = LayoutOnDevice(a);
  Expand expand(a, s);
  MultiplyFma<kUnits * kGqsUnit>(a, s.consistent, expand);
}

}  // namespace

cudaError_t LaunchGqsFma(const GqsCudaArgs& a, cudaStream_t stream) {
  GqsFmaKernel<<<static_cast<unsigned>(CountTiles(a.problem, kFmaTile)), kFmaThreads, 0, stream>>>(
      a);
  return cudaGetLastError();
}

}  // namespace sparsekern::cuda
