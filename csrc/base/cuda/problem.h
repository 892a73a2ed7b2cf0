// SPDX-License-Identifier: Apache-2.0
// What the CUDA products of every family of weights are asked: a linear layer on device memory, and
// the sizes by which a family chooses its kernel. Host code and device code.
#pragma once

#include <cstdint>

#include "sparsekern/activation.h"
#include "sparsekern/dtype.h"

namespace sparsekern::cuda {

struct LinearProblem {
  int64_t x_rows, rows, cols;
  int64_t value_count, structure_bytes;
  DType x_dtype, value_dtype;
};

// Of the device. multiprocessors >= 1; shared_bytes: the most that a block of threads may have;
// wgmma: whether it has Hopper's tensor-core instructions, and the library code with them.
struct DeviceLimits {
  int multiprocessors, shared_bytes;
  bool wgmma = false;
};

// y = activation(scale * (x W^T) + bias). Pointers are device memory. A family's arguments are this
// and its plan.
struct LinearCall {
  LinearProblem problem;
  const void* x;             // [x_rows, cols]
  int64_t x_stride;          // elements between rows of x
  int64_t x_cols;            // cols, or more where PadRows put zeros behind them
  const void* values;        // 16-byte aligned
  const uint8_t* structure;  // 16-byte aligned
  const float* scale;        // [rows] or null
  const float* bias;         // [rows] or null
  void* y;                   // [x_rows, rows], of x's dtype
  float* partial;            // [parts, x_rows, rows], where the plan has parts to add up
  Activation activation;
};

// to [rows, to_cols] = from [rows, cols], rows from_stride apart, zeros from cols on; elements of
// element_bytes, 2 or 4. Enqueued on `stream` (a cudaStream_t); nullptr or the CUDA error's text.
const char* PadRows(const void* from, int64_t from_stride, int64_t rows, int64_t cols, void* to,
                    int64_t to_cols, int element_bytes, void* stream);

}  // namespace sparsekern::cuda
