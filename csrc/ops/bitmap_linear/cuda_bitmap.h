// SPDX-License-Identifier: Apache-2.0
// The CUDA products of bitmap_linear, as bind/ sees them.
#pragma once

#include "ops/bitmap_linear/cuda_plan.h"

namespace sparsekern::cuda {

// For all kernels but kFma x is 16-byte aligned and x_cols a multiple of 8.
struct BitmapCudaArgs : LinearCall {
  BitmapPlan plan;
};

// Enqueues on `stream` (a cudaStream_t); nullptr or the CUDA error's text. A structure whose header
// contradicts the sizes given makes every output NaN: there is no way to raise without waiting for
// the device. Any other bytes are safe: positions come from counted bits, and nothing is read
// beyond the last value.
const char* BitmapLinear(const BitmapCudaArgs& args, void* stream);

}  // namespace sparsekern::cuda
