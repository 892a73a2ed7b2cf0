// SPDX-License-Identifier: Apache-2.0
// What launches have in common.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/problem.h"
#include "base/cuda/tiles.h"

namespace sparsekern::cuda {

// Lets a kernel have all shared memory of the current device: always the same number, since another
// thread of the host may set it between this and its own launch.
template <typename Kernel>
cudaError_t AllowSharedMemory(Kernel kernel) {
  int device = 0, most = 0;
  cudaFuncAttributes of = {};
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&of, kernel);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most - static_cast<int>(of.sharedSizeBytes));
}

// A block of threads for each tile of y, with as much dynamic shared memory at every launch.
template <typename Args>
cudaError_t LaunchTiles(void (*kernel)(Args), TileSize tile, int threads, int shared_bytes,
                        const Args& a, cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(CountTiles(a.problem, tile)), threads, shared_bytes, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace sparsekern::cuda
