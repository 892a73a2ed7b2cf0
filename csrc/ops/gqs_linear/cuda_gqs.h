// SPDX-License-Identifier: Apache-2.0
// The CUDA products of gqs_linear, as bind/ sees them.
#pragma once

#include "ops/gqs_linear/cuda_plan.h"

namespace sparsekern::cuda {

// scale is null. For the tensor-core kernel x is 16-byte aligned and x_cols a multiple of 8. For
// kDecode partial is [1, x_rows, rows].
struct GqsCudaArgs : LinearCall {
  GqsSizes sizes;
  GqsPlan plan;
  const void* group_scale;  // of kept groups, then their zero-points
  float* carried;           // [plan.blocks, x_rows], for kDecode
};

// Enqueues on `stream` (a cudaStream_t); nullptr or the CUDA error's text. A structure whose header
// contradicts the sizes given makes every output NaN: there is no way to raise without waiting for
// the device.
const char* GqsLinear(const GqsCudaArgs& args, void* stream);

}  // namespace sparsekern::cuda
