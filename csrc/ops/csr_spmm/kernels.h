// SPDX-License-Identifier: Apache-2.0
// What an ISA file offers to the drivers linear.cc, conv2d.cc and sddmm.cc: plain functions over
// one tile or one scratch buffer. Everything here is data, so that ISA files may include it.
#pragma once

#include <cstdint>

#include "sparsekern/activation.h"
#include "sparsekern/csr.h"
#include "sparsekern/isa.h"

namespace sparsekern {

// One tile of the packed matrix. `values` are of the kernel's dtype.
struct CsrTile {
  const void* values;
  const uint8_t* order;
  const uint8_t* count;
  const uint8_t* index;
  int64_t steps;     // bound on what may be read, whatever `count` says
  int panel_groups;  // H
};

// Scratch sizes that make any byte in order, count and index memory-safe: an x tile has this many
// rows beyond its block's start, a y panel this many groups.
enum : int { kCsrReachableCols = 256, kCsrReachableGroups = 256 };

// The bounds of an activation that is a clamp, and none for the others.
struct Clamp {
  float low = -__builtin_inff();
  float high = __builtin_inff();
};
static constexpr bool IsClamp(Activation a) { return a <= Activation::kRelu6; }
static constexpr Clamp ClampOf(Activation a) {
  Clamp clamp;
  if (a == Activation::kRelu || a == Activation::kRelu6) clamp.low = 0.0f;
  if (a == Activation::kRelu6) clamp.high = 6.0f;
  return clamp;
}

// Decode: few rows of x, memory-bound. y[m][order * R + i] += sum of the tile's products.
// x: the tile's block in rows of x_stride floats (fp32, kCsrBlockCols readable).
using CsrDecodeFn = void (*)(const CsrTile& tile, const float* x, int64_t x_stride, int x_rows,
                             float* y, int64_t y_stride);
// Where the last tile of a panel puts finished rows, when the output is channel-major fp32: row r,
// `pixels` <= width of it, to y + r * stride, for r < rows. scale, bias: [rows] or nullptr.
struct CsrPanelOutput {
  float* y;
  int64_t stride;
  int64_t rows;
  int pixels;
  const float* scale;
  const float* bias;
  Activation activation;
};
// Batch: channel-major. x: [>= kCsrReachableCols][width], y: [groups * R][width], both fp32;
// values fp32. The first tile of a panel sets y, the others add to it; with an output the sums go
// there instead, finished.
using CsrBatchFn = void (*)(const CsrTile& tile, const float* x, float* y, bool first,
                            const CsrPanelOutput* output);
// Gradient of one tile's values: values_grad[...] += dot(grad row, x row) over `width` floats.
using CsrSddmmFn = void (*)(const CsrTile& tile, const float* grad, const float* x, int width,
                            float* values_grad);

// in: n elements of a dtype -> fp32.
using ExpandFn = void (*)(const void* in, int64_t n, float* out);
// fp32 -> n elements of a dtype.
using NarrowFn = void (*)(const float* in, int64_t n, void* out);
// in: rows x cols elements, rows `stride` elements apart -> out[cols][width], rows..width zeroed.
using PackRowsFn = void (*)(const void* in, int64_t stride, int rows, int64_t cols, int width,
                            float* out);
// in: channels x n elements, channels `stride` elements apart -> out[channels][width], the first n.
using PackChannelsFn = void (*)(const void* in, int64_t stride, int64_t channels, int64_t n,
                                int width, float* out);
// in: [cols][width] -> out: rows x cols elements, rows `stride` elements apart, each
// clamp(in * scale[col] + bias[col]); nullptr: 1, 0.
using StoreRowsFn = void (*)(const float* in, int width, int rows, int64_t cols, const float* scale,
                             const float* bias, Clamp clamp, void* out, int64_t stride);
// In place: row c of acc[rows][width] becomes activation(row * scale[c] + bias[c]); nullptr: 1, 0.
using FinishChannelsFn = void (*)(float* acc, int64_t rows, int width, const float* scale,
                                  const float* bias, Activation activation);
// In place over one row: acc[c] = activation(acc[c] * scale[c] + bias[c]).
using FinishRowFn = void (*)(float* acc, int64_t n, const float* scale, const float* bias,
                             Activation activation);

// In place: n floats become the nearest multiples of max |row| / 127, as whole numbers in
// [-127, 127]. Returns that step: NaN where the row holds a NaN or an infinity.
using QuantizeRowFn = float (*)(float* row, int64_t n);
// The steps of each of the `width` rows of a packed tile x[cols][width], and what to multiply by.
using TileStepsFn = void (*)(const float* x, int64_t cols, int width, float* scale, float* inverse);
// In place: whole numbers, round(x * inverse).
using QuantizeTileFn = void (*)(float* x, int64_t cols, int width, const float* inverse);
// y[rows][width] *= scale[width].
using RescaleFn = void (*)(float* y, int64_t rows, int width, const float* scale);

// Of the widths of a kernel set, the one that x is cut into; the one above it takes in a remainder
// that would be too narrow to be fast by itself.
enum : int { kCsrWidths = 5, kCsrTileWidth = 3 };

// Bound on max_decode_rows.
enum : int { kMaxDecodeRows = 8 };

// One row of kernels.inc.
struct CsrKernels {
  const char* isa_name;
  IsaMask isa;
  int max_decode_rows;              // up to so many rows of x the decode kernel is the faster one
  int widths[kCsrWidths];           // rows of x that the batch kernels take, ascending
  CsrDecodeFn decode[4][3];         // [DType][log2 R]
  CsrBatchFn batch[3][kCsrWidths];  // [log2 R][width]
  CsrSddmmFn sddmm[3];              // [log2 R]
  ExpandFn expand[4];               // [DType]
  NarrowFn narrow[3];               // [DType], not kI8
  PackRowsFn pack_rows[3];
  PackChannelsFn pack_channels[3];
  StoreRowsFn store_rows[3];
  FinishChannelsFn finish_channels;
  FinishRowFn finish_row;
  QuantizeRowFn quantize_row;
  TileStepsFn tile_steps;
  QuantizeTileFn quantize_tile;
  RescaleFn rescale;
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
// Batch with int8 values and codes[>= kCsrReachableCols][width]; sums in y[groups * R][width]: the
// first tile of a panel sets them, the others add.
using Int8TileFn = void (*)(const CsrTile& tile, const uint8_t* codes, int width, int32_t* y,
                            bool first);

// One row of int8_kernels.inc: what a processor with int8 dot products has beyond its CsrKernels.
struct CsrInt8Kernels {
  const char* isa_name;
  int widths[kCsrWidths];
  Int8CodesFn codes[kCsrWidths];
  Int8TileFn batch[3][kCsrWidths];  // [log2 R][width]
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
