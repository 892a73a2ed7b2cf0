// SPDX-License-Identifier: Apache-2.0
// The CUDA products of nm_linear, as bind/ sees them.
#pragma once

#include "ops/nm_linear/cuda_plan.h"

namespace sparsekern::cuda {

// For the tensor-core kernels x is 16-byte aligned and x_cols a multiple of 8.
struct NmCudaArgs : LinearCall {
  NmPlan plan;
};

// Enqueues on `stream` (a cudaStream_t); nullptr or the CUDA error's text. A structure whose header
// contradicts the sizes given makes every output NaN: there is no way to raise without waiting for
// the device.
const char* NmLinear(const NmCudaArgs& args, void* stream);

}  // namespace sparsekern::cuda
