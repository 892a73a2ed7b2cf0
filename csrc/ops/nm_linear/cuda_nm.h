// SPDX-License-Identifier: Apache-2.0
// The CUDA products of nm_linear, as bind/ sees them. Pointers are device memory.
#pragma once

#include <cstdint>

#include "ops/nm_linear/cuda_plan.h"
#include "sparsekern/activation.h"

namespace sparsekern::cuda {

// x: [x_rows, cols], rows x_stride elements apart; for the tensor-core kernels 16-byte aligned, of
// x_cols columns, a multiple of 8, with zeros from cols on (PadRows). values and structure: 16-byte
// aligned. y: [x_rows, rows], of x's dtype. partial: [parts, x_rows, rows], for
// kDecode.
struct NmCudaArgs {
  NmProblem problem;
  NmPlan plan;
  const void* x;
  int64_t x_stride, x_cols;
  const void* values;
  const uint8_t* structure;
  const float* scale;  // [rows] or null
  const float* bias;   // [rows] or null
  void* y;
  float* partial;
  Activation activation;
};

// Enqueues on `stream` (a cudaStream_t); nullptr or the CUDA error's text. A structure whose header
// contradicts the sizes given makes every output NaN: there is no way to raise without waiting for
// the device.
const char* NmLinear(const NmCudaArgs& args, void* stream);

// to [rows, to_cols] = from [rows, cols], rows from_stride apart, zeros from cols on; 16-bit
// elements.
const char* PadRows(const void* from, int64_t from_stride, int64_t rows, int64_t cols, void* to,
                    int64_t to_cols, void* stream);

}  // namespace sparsekern::cuda
