// SPDX-License-Identifier: Apache-2.0
// What every instruction set offers to the operators: x into tiles and out of them, products of
// tiles with 16-lane slices of weights, epilogues. Plain functions over scratch memory; data only
// here, so that kernel files may include it.
#pragma once

#include <cstdint>

#include "sparsekern/activation.h"
#include "sparsekern/dtype.h"
#include "sparsekern/isa.h"

namespace sparsekern {

// Weights that are multiplied 16 lanes at a time: slices of 16 groups of R rows, each group with
// its own columns. `values` are [steps][R][16], slice after slice; `index` is [steps][16].
enum : int { kSliceLanes = 16 };
struct WeightTile {
  const void* values;
  const uint8_t* order;  // [groups]: where the sums of a position belong
  const uint8_t* count;  // [groups]: steps of a position; within a slice the first is the longest
  const uint8_t* index;
  int64_t steps;  // bound on what may be read, whatever `count` says
  int groups;     // a multiple of 16
};

// Scratch sizes that make any byte in order, count and index memory-safe: an x tile has this many
// rows beyond its block's start, a y panel this many groups.
enum : int { kReachableCols = 256, kReachableGroups = 256 };

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

// Where the last tile of a panel puts finished rows, when the output is channel-major fp32: row r,
// `pixels` <= width of it, to y + r * stride, for r < rows. scale, bias: [rows] or nullptr.
struct PanelOutput {
  float* y;
  int64_t stride;
  int64_t rows;
  int pixels;
  const float* scale;
  const float* bias;
  Activation activation;
};
// Batch: channel-major. x: [>= kReachableCols][width], y: [groups * R][width], both fp32;
// values fp32. The first tile of a panel sets y, the others add to it; with an output the sums go
// there instead, finished.
using BatchFn = void (*)(const WeightTile& tile, const float* x, float* y, bool first,
                         const PanelOutput* output);

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
enum : int { kBatchWidths = 5, kTileWidth = 3 };

// One row of tile_kernels.inc.
struct TileKernels {
  const char* isa_name;
  IsaMask isa;
  int widths[kBatchWidths];        // rows of x that the batch kernels take, ascending
  BatchFn batch[3][kBatchWidths];  // [log2 R][width]
  ExpandFn expand[4];              // [DType]
  NarrowFn narrow[3];              // [DType], not kI8
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

#define SPARSEKERN_TILE_KERNELS(isa_flag, isa_suffix) \
  extern const TileKernels kTileKernels_##isa_suffix;
#include "base/simd/tile_kernels.inc"
#undef SPARSEKERN_TILE_KERNELS

}  // namespace sparsekern
