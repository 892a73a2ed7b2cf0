// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "base/cuda/problem.h"
#include "base/cuda/tiles.h"

namespace sparsekern::cuda {
namespace {

template <typename T>
__global__ void PadRowsKernel(const T* from, int64_t from_stride, int64_t rows, int64_t cols, T* to,
                              int64_t to_cols) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows * to_cols) return;
  const int64_t row = i / to_cols, col = i % to_cols;
  to[i] = col < cols ? from[row * from_stride + col] : T{0};
}

template <typename T>
void Launch(const void* from, int64_t from_stride, int64_t rows, int64_t cols, void* to,
            int64_t to_cols, void* stream) {
  PadRowsKernel<T><<<static_cast<unsigned>(DivideUp(rows * to_cols, 256)), 256, 0,
                     static_cast<cudaStream_t>(stream)>>>(static_cast<const T*>(from), from_stride,
                                                          rows, cols, static_cast<T*>(to), to_cols);
}

}  // namespace

const char* PadRows(const void* from, int64_t from_stride, int64_t rows, int64_t cols, void* to,
                    int64_t to_cols, int element_bytes, void* stream) {
  if (element_bytes == 4) {
    Launch<uint32_t>(from, from_stride, rows, cols, to, to_cols, stream);
  } else {
    Launch<uint16_t>(from, from_stride, rows, cols, to, to_cols, stream);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace sparsekern::cuda
