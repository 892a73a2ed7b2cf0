// SPDX-License-Identifier: Apache-2.0
// The CUDA linear product, as bind/ sees it. Pointers are device memory but for the struct itself.
#pragma once

#include <cstdint>

#include "sparsekern/activation.h"
#include "sparsekern/dtype.h"

namespace sparsekern::cuda {

struct CsrLinearArgs {
  const void* x;             // [x_rows, cols], contiguous
  const void* values;        // value_count
  const uint8_t* structure;  // structure_bytes
  const float* scale;        // [rows] or null
  const float* bias;         // [rows] or null
  void* y;                   // [x_rows, rows]
  float* partial;            // [parts, x_rows, rows]
  int64_t x_rows, rows, cols, structure_bytes, value_count;
  int64_t panels;  // an upper bound: the true number is in the structure
  int parts;       // how many ways the columns are split
  DType x_dtype, value_dtype;
  Activation activation;
};

// Ways to split the columns so that a device of `multiprocessors` is filled.
int ChooseParts(int64_t rows, int64_t cols, int64_t x_rows, int multiprocessors);

// Panels are between 16 and 256 groups; this many blocks of threads cover the worst case.
int64_t MaxPanels(int64_t rows);

// Enqueues on `stream` (a cudaStream_t); nullptr or the CUDA error's text. A structure whose header
// contradicts the sizes given makes every output NaN: there is no way to raise without waiting for
// the device.
const char* CsrLinear(const CsrLinearArgs& args, void* stream);

}  // namespace sparsekern::cuda
