// SPDX-License-Identifier: Apache-2.0
// What an ISA file offers to the driver of bitmap_linear, beside its tile kernels.
#pragma once

#include <cstdint>

#include "base/simd/tile_kernels.h"
#include "sparsekern/bitmap_linear.h"

namespace sparsekern {

// The values that are still to come, `left` of them. The bits say how many a slice takes; where
// they say more than there are, nothing behind the last is read.
struct BitmapValues {
  const uint8_t* next;
  int64_t left;
};

// One panel of 16 rows of W: `bitmap` is u64[words][16], perhaps unaligned.
struct BitmapPanel {
  BitmapValues values;
  const uint8_t* bitmap;
  int64_t words;
};

static inline BitmapPanel PanelAt(const BitmapMatrix& w, int64_t panel) {
  const BitmapStructure& s = w.structure;
  const int64_t first = s.panel_ptr(panel);
  return BitmapPanel{
      {static_cast<const uint8_t*>(w.values) + static_cast<size_t>(first) * SizeOf(w.dtype),
       s.kept - first},
      s.slice(panel, 0),
      s.words};
}

// Decode: few rows of x, memory-bound. y[x_rows][16] = products of one panel, raw, rows y_stride
// apart. x: rows of x_stride floats (fp32), whole words readable.
using BitmapDecodeFn = void (*)(const BitmapPanel& panel, const float* x, int64_t x_stride,
                                int x_rows, float* y, int64_t y_stride);
// Batch: y[16][width] = the products of one slice of 16 words, raw, on top of what y holds unless
// `first`. x: fp32, [64][width]. expand: of the values' dtype. `values` moves behind the slice's.
using BitmapBatchFn = void (*)(const uint8_t* slice, DType dtype, ExpandFn expand,
                               BitmapValues* values, const float* x, float* y, bool first);

// out: 16-bit [16][stride] = the rows of a panel of 16-bit values, whole words, 0 where nothing is
// kept.
using BitmapExpandFn = void (*)(const BitmapPanel& panel, uint16_t* out, int64_t stride);

static constexpr int kBitmapMaxDecodeRows = 16;

// Puts a row of x, whole words, into the order that a decode kernel likes. False, and x lost,
// unless every element is finite and at most 2^64 by magnitude: pruned weights are multiplied as
// zeros. A row that says false moves all rows of the call to the other kernels.
using BitmapArrangeFn = bool (*)(float* x, int64_t words);
// Decode kernels for arranged x; all nullptr where there is none for a dtype of values.
struct BitmapArranged {
  int max_rows;                // of x, up to which they are the faster ones
  BitmapArrangeFn arrange[4];  // [DType]
  BitmapDecodeFn decode[4];
  BitmapDecodeFn few[4];
};

// One row of kernels.inc.
struct BitmapKernels {
  const TileKernels& tiles;
  int max_decode_rows;                // up to so many rows of x the decode kernel is the faster one
  BitmapDecodeFn decode[4];           // [DType], one row of x
  BitmapDecodeFn few[4];              // [DType], more
  BitmapBatchFn batch[kBatchWidths];  // of tiles.widths
  BitmapExpandFn expand;
  BitmapArranged arranged;
};

#define SPARSEKERN_BITMAP_KERNELS(isa_flag, isa_suffix) \
  extern const BitmapKernels kBitmapKernels_##isa_suffix;
#include "ops/bitmap_linear/kernels.inc"
#undef SPARSEKERN_BITMAP_KERNELS

// The first row of kernels.inc whose ISA is in the mask.
const BitmapKernels& SelectBitmapKernels(IsaMask mask);

}  // namespace sparsekern
