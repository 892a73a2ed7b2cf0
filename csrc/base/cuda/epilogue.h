// SPDX-License-Identifier: Apache-2.0
// From sums in fp32 to a product's result: scale, bias, activation, rounding. Device code only.
#pragma once

#include <cuda_runtime.h>

#include "base/cuda/numbers.h"
#include "base/cuda/problem.h"
#include "base/cuda/tiles.h"

namespace sparsekern::cuda {

// A sum's way to the output; NaN where the structure's header contradicts the sizes given, since
// there is no way to raise without waiting for the device.
__device__ __forceinline__ float Finish(const LinearCall& a, bool consistent, int64_t feature,
                                        float sum) {
  if (!consistent) return QuietNaN();
  if (a.scale != nullptr) sum *= a.scale[feature];
  if (a.bias != nullptr) sum += a.bias[feature];
  return Activate(sum, a.activation);
}

// The four results of a fragment of 16 rows of W from `feature` on and 8 of x from `token` on, into
// a tile of sums in shared memory, [Tokens][stride].
__device__ __forceinline__ void PutFragment(float* sums, int stride, int feature, int token,
                                            int lane, const float (&d)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    sums[(token + ResultToken(lane, e)) * stride + feature + ResultFeature(lane, e)] = d[e];
  }
}

// Such a tile to y: scale, bias, activation, rounding.
template <typename E, int Features, int Tokens, int Threads>
__device__ __forceinline__ void StoreTile(const LinearCall& a, bool consistent, ResultTile at,
                                          const float* sums, int stride) {
  const bool pairs = a.problem.rows % 2 == 0;  // then a pair is aligned in every row of y
  for (int c = static_cast<int>(threadIdx.x); c < Tokens * Features / 2; c += Threads) {
    const int token = c / (Features / 2), feature = c % (Features / 2) * 2;
    const int64_t m = at.token * Tokens + token, n = at.feature * Features + feature;
    if (m >= a.problem.x_rows || n >= a.problem.rows) continue;
    const float* sum = sums + token * stride + feature;
    E* y = static_cast<E*>(a.y) + m * a.problem.rows + n;
    struct alignas(2 * sizeof(E)) Pair {
      E first, second;
    };
    const E first = FromFloat<E>(Finish(a, consistent, n, sum[0]));
    if (n + 1 == a.problem.rows) {
      *y = first;
      continue;
    }
    const E second = FromFloat<E>(Finish(a, consistent, n + 1, sum[1]));
    if (pairs) {
      *reinterpret_cast<Pair*>(y) = Pair{first, second};
    } else {
      y[0] = first;
      y[1] = second;
    }
  }
}

// The sums of `parts` parts of the columns, added in order, so that results are deterministic.
// Args: a LinearCall with its plan; Consistent(Args) says whether the structure's header fits.
template <typename Args>
__global__ void AddPartsKernel(const Args a) {
  const bool consistent = Consistent(a);
  const int64_t n = a.problem.x_rows * a.problem.rows;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float sum = 0.0f;
  for (int part = 0; part < a.plan.parts; ++part) sum += a.partial[part * n + i];
  StoreFloat(a.y, i, a.problem.x_dtype, Finish(a, consistent, i % a.problem.rows, sum));
}
template <typename Args>
cudaError_t LaunchAddParts(const Args& a, cudaStream_t stream) {
  const int64_t n = a.problem.x_rows * a.problem.rows;
  AddPartsKernel<Args><<<static_cast<unsigned>(DivideUp(n, 256)), 256, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace sparsekern::cuda
