// SPDX-License-Identifier: Apache-2.0
// What the files with the CUDA kernels offer to cuda_gqs.cu, and what they share. Device code.
#pragma once

#include <cuda_runtime.h>

#include "base/cuda/epilogue.h"
#include "ops/gqs_linear/cuda_gqs.h"

namespace sparsekern::cuda {

cudaError_t LaunchGqsDecode(const GqsCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchGqsDenseMma(const GqsCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchGqsFma(const GqsCudaArgs& a, cudaStream_t stream);

// The layout by the structure's own header.
__device__ __forceinline__ GqsLayout LayoutOnDevice(const GqsCudaArgs& a) {
  return ReadGqsLayout(static_cast<const uint8_t*>(__builtin_assume_aligned(a.structure, 16)),
                       a.sizes);
}
// Found by MultiplyDense.
__device__ __forceinline__ bool Consistent(const GqsCudaArgs& a) {
  return LayoutOnDevice(a).consistent;
}

// With 8-bit scales, what those of a row are multiplied by.
__device__ __forceinline__ float RowFactor(const GqsCudaArgs& a, const GqsLayout& s, int64_t row) {
  return s.row_factors ? reinterpret_cast<const float*>(a.structure + s.factors)[row] : 1.0f;
}

// Scale i of the groups; zero-points follow the scales of all kept groups.
__device__ __forceinline__ float GroupScale(const GqsCudaArgs& a, int64_t i) {
  switch (a.sizes.kind) {
    case GqsScale::kF32: return LoadAsFloat(a.group_scale, i, DType::kF32);
    case GqsScale::kBF16: return LoadAsFloat(a.group_scale, i, DType::kBF16);
    case GqsScale::kF16: return LoadAsFloat(a.group_scale, i, DType::kF16);
    case GqsScale::kU8: return static_cast<float>(static_cast<const uint8_t*>(a.group_scale)[i]);
  }
  return 0.0f;
}

// Four columns of a kept unit, as a thread of a quad has them.
struct FourWeights {
  float w[4];
};
__device__ __forceinline__ FourWeights WeightsOf(const GqsCudaArgs& a, const GqsLayout& s,
                                                 int64_t unit, int quarter, float factor) {
  const uint4 raw = __ldg(static_cast<const uint4*>(a.values) +
                          (unit >> s.block_shift) * (kGqsBlockBytes / 16) + quarter);
  const int64_t group = unit >> s.unit_shift;
  const float scale = GroupScale(a, group) * factor;
  const float zero = s.zeros ? GroupScale(a, s.groups + group) : 0.0f;
  const int field = static_cast<int>(unit) & ((1 << s.block_shift) - 1);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  FourWeights result;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    result.w[c] = (GqsCodeOf(words[c], s.bits, field) - zero) * scale;
  }
  return result;
}

}  // namespace sparsekern::cuda
