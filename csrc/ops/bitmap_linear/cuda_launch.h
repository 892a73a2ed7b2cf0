// SPDX-License-Identifier: Apache-2.0
// What the files with the CUDA kernels offer to cuda_bitmap.cu, and what they share. Device code.
#pragma once

#include <cuda_runtime.h>

#include "base/cuda/epilogue.h"
#include "base/cuda/tile_memory.h"
#include "ops/bitmap_linear/cuda_bitmap.h"

namespace sparsekern::cuda {

cudaError_t LaunchDecode(const BitmapCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchDecodeMma(const BitmapCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchDenseMma(const BitmapCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchFma(const BitmapCudaArgs& a, cudaStream_t stream);

// Also found by AddPartsKernel and MultiplyDense.
__device__ __forceinline__ bool Consistent(const BitmapCudaArgs& a) {
  return BitmapHeaderFits(static_cast<const uint8_t*>(__builtin_assume_aligned(a.structure, 16)),
                          a.problem.rows, a.problem.cols, a.problem.value_count);
}

// The sum of the lanes up to this one.
__device__ __forceinline__ int SumOfLanesTo(int lane, int own) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, own, step);
    if (lane >= step) own += before;
  }
  return own;
}

}  // namespace sparsekern::cuda
