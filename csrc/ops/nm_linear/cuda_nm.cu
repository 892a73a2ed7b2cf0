// SPDX-License-Identifier: Apache-2.0
// nm_linear on CUDA: from the plan to the kernel.
#include "ops/nm_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

__global__ void PadRowsKernel(const uint16_t* from, int64_t from_stride, int64_t rows, int64_t cols,
                              uint16_t* to, int64_t to_cols) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows * to_cols) return;
  const int64_t row = i / to_cols, col = i % to_cols;
  to[i] = col < cols ? from[row * from_stride + col] : uint16_t{0};
}

const char* TextOf(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* NmLinear(const NmCudaArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (a.plan.kernel) {
    case NmKernel::kDecode: return TextOf(LaunchDecode(a, on));
    case NmKernel::kSparseMma: return TextOf(LaunchSparseMma(a, on));
    case NmKernel::kDenseMma: return TextOf(LaunchDenseMma(a, on));
    case NmKernel::kFma: return TextOf(LaunchFma(a, on));
  }
  return TextOf(cudaErrorInvalidValue);
}

const char* PadRows(const void* from, int64_t from_stride, int64_t rows, int64_t cols, void* to,
                    int64_t to_cols, void* stream) {
  PadRowsKernel<<<static_cast<unsigned>(NmDivideUp(rows * to_cols, 256)), 256, 0,
                  static_cast<cudaStream_t>(stream)>>>(static_cast<const uint16_t*>(from),
                                                       from_stride, rows, cols,
                                                       static_cast<uint16_t*>(to), to_cols);
  return TextOf(cudaGetLastError());
}

}  // namespace sparsekern::cuda
