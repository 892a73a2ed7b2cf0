// SPDX-License-Identifier: Apache-2.0
// What an ISA file offers to the driver of nm_linear, beside its tile kernels.
#pragma once

#include <cstdint>

#include "base/simd/tile_kernels.h"
#include "sparsekern/nm.h"

namespace sparsekern {

// One panel of 16 rows of W. `values` are [steps][16], `words` [words][16] u32.
struct NmPanel {
  const uint8_t* values;
  const uint8_t* words;
  int64_t steps;
  int steps_per_window;
};

// Decode: few rows of x, memory-bound. y[x_rows][16] = products of one panel, raw, rows y_stride
// apart. x: rows of x_stride floats (fp32), whole windows readable.
using NmDecodeFn = void (*)(const NmPanel& panel, const float* x, int64_t x_stride, int x_rows,
                            float* y, int64_t y_stride);
// Batch: the columns of `steps` steps, counted from the first of these windows, one byte each:
// index[steps][16]. words: from the one on that holds the first of the steps, as its `field`.
using NmColumnsFn = void (*)(const uint8_t* words, int field, int64_t steps, int steps_per_window,
                             uint8_t* index);
// Batch: y[16][width] = the products of these steps, raw, on top of what y holds unless `first`.
// values, index: [steps][16]; x: fp32, [columns][width].
using NmBatchFn = void (*)(const float* values, const uint8_t* index, int steps, const float* x,
                           float* y, bool first);

enum : int { kNmWindows = 3, kNmMaxDecodeRows = 16 };
constexpr int NmWindowIndex(int window) { return window == 4 ? 0 : window == 16 ? 1 : 2; }

// One row of kernels.inc.
struct NmKernels {
  const TileKernels& tiles;
  int max_decode_rows;               // up to so many rows of x the decode kernel is the faster one
  NmDecodeFn decode[4][kNmWindows];  // [DType][window]
  NmColumnsFn columns[kNmWindows];
  NmBatchFn batch[kBatchWidths];  // of tiles.widths
};

#define SPARSEKERN_NM_KERNELS(isa_flag, isa_suffix) extern const NmKernels kNmKernels_##isa_suffix;
#include "ops/nm_linear/kernels.inc"
#undef SPARSEKERN_NM_KERNELS

// The first row of kernels.inc whose ISA is in the mask.
const NmKernels& SelectNmKernels(IsaMask mask);

}  // namespace sparsekern
