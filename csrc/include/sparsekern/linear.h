// SPDX-License-Identifier: Apache-2.0
// What the linear layers of all formats share: a packed weight, and the arguments of a product.
#pragma once

#include <cstdint>

#include "sparsekern/activation.h"
#include "sparsekern/dtype.h"

namespace sparsekern {

// A packed weight. `structure` comes from the format's parse function; `values` are
// structure.value_count() elements of `dtype`; `scale` is [rows], for kI8 only, else nullptr.
template <typename Structure>
struct PackedMatrix {
  Structure structure;
  const void* values = nullptr;
  DType dtype = DType::kF32;
  const float* scale = nullptr;
};

// y[m, n] = activation(sum_k x[m, k] * w[n, k] + bias[n]), accumulated in fp32.
// x: x_rows x w.cols, rows x_stride elements apart; y: x_rows x w.rows, rows y_stride apart; both
// of dtype kF32, kBF16 or kF16.
//
// int8_x, for the operators that say they take it, csr's with kI8 values only: each row of x (or
// what the operator says) is first rounded to the nearest multiples of max |row| / 127, and the
// products are of integers (with dot-product instructions where the processor has them). A row with
// a NaN or an infinity then answers NaN everywhere; one without a number above 2^-100 counts as
// zeros.
struct LinearArgs {
  const void* x = nullptr;
  void* y = nullptr;
  DType dtype = DType::kF32;
  int64_t x_rows = 0;
  int64_t x_stride = 0;
  int64_t y_stride = 0;
  Epilogue epilogue;
  bool int8_x = false;
};

}  // namespace sparsekern
