// SPDX-License-Identifier: Apache-2.0
// Products of a csr matrix with dense activations: a linear layer and a 1x1 convolution.
#pragma once

#include <cstdint>
#include <string>

#include "sparsekern/activation.h"
#include "sparsekern/csr.h"
#include "sparsekern/isa.h"
#include "sparsekern/linear.h"
#include "sparsekern/parallel.h"

namespace sparsekern {

using CsrMatrix = PackedMatrix<CsrStructure>;

// A linear layer. A weight that is not kept contributes nothing, whatever x holds. Takes int8_x.
Status CsrLinear(const CsrMatrix& w, const LinearArgs& args, const ParallelFor& parallel_for);

// 1x1 convolution without padding or groups. x: [batch, w.cols, height, width] and
// y: [batch, w.rows, ceil(height / stride), ceil(width / stride)], contiguous. int8_x as in
// LinearArgs, each pixel being a row.
struct CsrConv2dArgs {
  const void* x = nullptr;
  void* y = nullptr;
  DType dtype = DType::kF32;
  int64_t batch = 0;
  int64_t height = 0;
  int64_t width = 0;
  int64_t stride = 1;
  Epilogue epilogue;
  bool int8_x = false;
};
Status CsrConv2d(const CsrMatrix& w, const CsrConv2dArgs& args, const ParallelFor& parallel_for);

// The kernel that an ISA mask selects, e.g. "csr_linear_r1_f32_decode__x86_avx512". A pure
// function.
std::string CsrLinearKernelName(const CsrMatrix& w, int64_t x_rows, IsaMask mask,
                                bool int8_x = false);
std::string CsrConv2dKernelName(const CsrMatrix& w, IsaMask mask, bool int8_x = false);

// Gradient of the kept values of w in y = x w^T: for an entry (n, k), sum_m grad[m, n] * x[m, k],
// in the order of `values`, padding 0. grad: x_rows x w.rows, x: x_rows x w.cols, contiguous, of
// one dtype kF32, kBF16 or kF16. Summed in a fixed order: the result does not depend on the
// threads.
struct CsrSddmmArgs {
  const void* grad = nullptr;
  const void* x = nullptr;
  DType dtype = DType::kF32;
  int64_t x_rows = 0;
  float* values_grad = nullptr;  // structure.value_count()
};
Status CsrSddmm(const CsrStructure& structure, const CsrSddmmArgs& args,
                const ParallelFor& parallel_for);

}  // namespace sparsekern
