// SPDX-License-Identifier: Apache-2.0
// bitmap_linear on CUDA: from the plan to the kernel.
#include "ops/bitmap_linear/cuda_launch.h"

namespace sparsekern::cuda {

const char* BitmapLinear(const BitmapCudaArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaErrorInvalidValue;
  switch (a.plan.kernel) {
    case BitmapKernel::kDecode: error = LaunchDecode(a, on); break;
    case BitmapKernel::kDecodeMma: error = LaunchDecodeMma(a, on); break;
    case BitmapKernel::kDenseMma: error = LaunchDenseMma(a, on); break;
    case BitmapKernel::kFma: error = LaunchFma(a, on); break;
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace sparsekern::cuda
