// SPDX-License-Identifier: Apache-2.0
// What an ISA file offers to the drivers linear.cc, conv2d.cc and sddmm.cc: plain functions over
// one tile or one scratch buffer. Everything here is data, so that ISA files may include it.
#pragma once

#include <cstdint>

#include "base/simd/tile_kernels.h"
#include "sparsekern/csr.h"

namespace sparsekern {

using CsrTile = WeightTile;

// Decode: few rows of x, memory-bound. y[m][order * R + i] += sum of the tile's products.
// x: the tile's block in rows of x_stride floats (fp32, kCsrBlockCols readable).
using CsrDecodeFn = void (*)(const CsrTile& tile, const float* x, int64_t x_stride, int x_rows,
                             float* y, int64_t y_stride);
// Gradient of one tile's values: values_grad[...] += dot(grad row, x row) over `width` floats.
using CsrSddmmFn = void (*)(const CsrTile& tile, const float* grad, const float* x, int width,
                            float* values_grad);

// Bound on max_decode_rows.
enum : int { kMaxDecodeRows = 8 };

// One row of kernels.inc.
struct CsrKernels {
  const TileKernels& tiles;
  int max_decode_rows;       // up to so many rows of x the decode kernel is the faster one
  CsrDecodeFn decode[4][3];  // [DType][log2 R]
  CsrSddmmFn sddmm[3];       // [log2 R]
};

#define SPARSEKERN_CSR_KERNELS(isa_flag, isa_suffix) \
  extern const CsrKernels kCsrKernels_##isa_suffix;
#include "ops/csr_spmm/kernels.inc"
#undef SPARSEKERN_CSR_KERNELS

// The first row of kernels.inc whose ISA is in the mask.
const CsrKernels& SelectCsrKernels(IsaMask mask);

// round(x * inverse) as one byte each, in the order that the tile kernel of this width takes.
using Int8CodesFn = void (*)(const float* x, int64_t cols, int width, const float* inverse,
                             uint8_t* codes);
// Batch with int8 values and codes[>= kReachableCols][width]; sums in y[groups * R][width]: the
// first tile of a panel sets them, the others add.
using Int8TileFn = void (*)(const CsrTile& tile, const uint8_t* codes, int width, int32_t* y,
                            bool first);

// One row of int8_kernels.inc: what a processor with int8 dot products has beyond its CsrKernels.
struct CsrInt8Kernels {
  const char* isa_name;
  int widths[kBatchWidths];
  Int8CodesFn codes[kBatchWidths];
  Int8TileFn batch[3][kBatchWidths];  // [log2 R][width]
  // In place: sums as floats, times scale[width].
  void (*rescale)(int32_t* y, int64_t rows, int width, const float* scale);
};

#define SPARSEKERN_CSR_INT8_KERNELS(isa_flag, isa_suffix) \
  extern const CsrInt8Kernels kCsrInt8Kernels_##isa_suffix;
#include "ops/csr_spmm/int8_kernels.inc"
#undef SPARSEKERN_CSR_INT8_KERNELS

// The first row of int8_kernels.inc whose ISA is in the mask; nullptr when there is none, and int8
// x is multiplied as whole numbers in fp32.
const CsrInt8Kernels* SelectCsrInt8Kernels(IsaMask mask);

}  // namespace sparsekern
