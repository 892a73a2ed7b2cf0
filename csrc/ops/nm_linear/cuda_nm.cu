// SPDX-License-Identifier: Apache-2.0
// nm_linear on CUDA: from the plan to the kernel.
#include "ops/nm_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

const char* TextOf(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* NmLinear(const NmCudaArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (a.plan.kernel) {
    case NmKernel::kDecode: return TextOf(LaunchDecode(a, on));
    case NmKernel::kSparseMma: return TextOf(LaunchSparseMma(a, on));
    case NmKernel::kSparseWgmma: return TextOf(LaunchSparseWgmma(a, on));
    case NmKernel::kDenseMma: return TextOf(LaunchDenseMma(a, on));
    case NmKernel::kFma: return TextOf(LaunchFma(a, on));
  }
  return TextOf(cudaErrorInvalidValue);
}

}  // namespace sparsekern::cuda
