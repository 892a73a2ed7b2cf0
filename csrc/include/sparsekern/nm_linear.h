// SPDX-License-Identifier: Apache-2.0
// The product of an N:M matrix with dense activations: a linear layer.
#pragma once

#include <cstdint>
#include <string>

#include "sparsekern/activation.h"
#include "sparsekern/dtype.h"
#include "sparsekern/isa.h"
#include "sparsekern/nm.h"
#include "sparsekern/parallel.h"

namespace sparsekern {

// A packed weight. `structure` comes from ParseNmStructure; `values` are structure.value_count()
// elements of `dtype`; `scale` is [rows], for kI8 only, else nullptr.
struct NmMatrix {
  NmStructure structure;
  const void* values = nullptr;
  DType dtype = DType::kF32;
  const float* scale = nullptr;
};

// y[m, n] = activation(sum_k x[m, k] * w[n, k] + bias[n]), accumulated in fp32.
// x: x_rows x w.cols, rows x_stride elements apart; y: x_rows x w.rows, rows y_stride apart; both
// of dtype kF32, kBF16 or kF16. Every stored weight, a zero too, multiplies as IEEE 754 says.
struct NmLinearArgs {
  const void* x = nullptr;
  void* y = nullptr;
  DType dtype = DType::kF32;
  int64_t x_rows = 0;
  int64_t x_stride = 0;
  int64_t y_stride = 0;
  Epilogue epilogue;
};
Status NmLinear(const NmMatrix& w, const NmLinearArgs& args, const ParallelFor& parallel_for);

// The kernel that an ISA mask selects, e.g. "nm_linear_2of4_bf16_decode__x86_avx512". A pure
// function.
std::string NmLinearKernelName(const NmMatrix& w, int64_t x_rows, IsaMask mask);

}  // namespace sparsekern
