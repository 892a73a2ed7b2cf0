// SPDX-License-Identifier: Apache-2.0
// gqs_linear on CUDA: from the plan to the kernel.
#include "ops/gqs_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

const char* TextOf(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* GqsLinear(const GqsCudaArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (a.plan.kernel) {
    case GqsKernel::kDecode: return TextOf(LaunchGqsDecode(a, on));
    case GqsKernel::kDenseMma: return TextOf(LaunchGqsDenseMma(a, on));
    case GqsKernel::kFma: return TextOf(LaunchGqsFma(a, on));
  }
  return TextOf(cudaErrorInvalidValue);
}

}  // namespace sparsekern::cuda
