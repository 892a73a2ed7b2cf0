// SPDX-License-Identifier: Apache-2.0
// What the files with the CUDA kernels offer to cuda_nm.cu, and what they share. Device code.
#pragma once

#include <cuda_runtime.h>

#include "base/cuda/epilogue.h"
#include "base/cuda/tile_memory.h"
#include "ops/nm_linear/cuda_nm.h"

namespace sparsekern::cuda {

cudaError_t LaunchDecode(const NmCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchSparseMma(const NmCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchSparseWgmma(const NmCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchDenseMma(const NmCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchFma(const NmCudaArgs& a, cudaStream_t stream);

// The layout by the structure's own header.
__device__ __forceinline__ NmLayout LayoutOnDevice(const NmCudaArgs& a) {
  return ReadNmLayout(static_cast<const uint8_t*>(__builtin_assume_aligned(a.structure, 16)),
                      a.problem.structure_bytes, a.problem.value_count, a.problem.rows,
                      a.problem.cols);
}
// Found by AddPartsKernel.
__device__ __forceinline__ bool Consistent(const NmCudaArgs& a) {
  return LayoutOnDevice(a).consistent;
}

}  // namespace sparsekern::cuda
