// SPDX-License-Identifier: Apache-2.0
// What an ISA file offers to the driver of gqs_linear, beside its tile kernels.
#pragma once

#include <cstdint>

#include "base/simd/tile_kernels.h"
#include "sparsekern/gqs.h"

namespace sparsekern {

// Consecutive kept units: number `first` and on of the matrix, `count` of them, 16 weights each.
struct GqsUnits {
  const uint8_t* values;  // of the matrix
  int64_t first;
  int64_t count;
  const float* scale;  // [count]
  const float* zero;   // [count], or nullptr
};

// A run of kept groups of rows of W, from the first of a chunk on: a block, or a group where that
// is more. Part i, of one row, is groups starts[i] to starts[i + 1].
struct GqsRun {
  const uint8_t* values;  // of the first chunk
  // A number a group: bytes from x to the first column of x that it meets, for panel kernels to its
  // record.
  const uint32_t* offset;
  const float* scale;  // a number a group
  const float* zero;   // or nullptr
  const int* starts;
  int count;  // of the parts
  int shift;  // a group has 2^shift units
};
static constexpr int GqsBlockShift(int bits) {
  return bits == 2 ? 4 : bits == 4 ? 3 : 2;
}  // log2 of units
static constexpr int GqsChunkShift(int bits, int shift) {  // log2 of the groups of a chunk
  return shift < GqsBlockShift(bits) ? GqsBlockShift(bits) - shift : 0;
}

// Decode: y[part][m] = the products of a part with row m of M rows of x: fp32, x[...][M][16].
using GqsDotFn = void (*)(const GqsRun& run, const uint8_t* x, float* y);
// The units as fp32: out[count][16].
using GqsExpandFn = void (*)(const GqsUnits& units, float* out);
// Batch: y[width] += the products of `count` units, w[count][16], with x[columns][width]; column[i]
// is the first of unit i.
using GqsBatchFn = void (*)(const float* w, const uint8_t* column, int count, const float* x,
                            float* y);
// The bits of `words` 16-bit words, ascending, times `step`: what is set after the first `skip` of
// them, `count` at most. Writes up to kGqsSlack elements more than it should.
using GqsOffsetsFn = void (*)(const uint8_t* words, int64_t word_count, int64_t skip, int64_t count,
                              uint32_t step, uint32_t* out);

enum : int { kGqsSlack = 16, kGqsWidths = 4, kGqsShifts = 4 };
constexpr int kGqsRows[kGqsWidths] = {2, 4, 8, 16};  // of x, at a time, where there are several
static constexpr int GqsBitsIndex(int bits) { return bits == 2 ? 0 : bits == 4 ? 1 : 2; }

// One row of kernels.inc.
struct GqsKernels {
  const TileKernels& tiles;
  int max_decode_rows;             // up to so many rows of x the decode kernel is the faster one
  GqsDotFn one[3][2][kGqsShifts];  // [bits][zeros][shift], for one row of x
  GqsDotFn dot[3][2][kGqsWidths];  // [bits][zeros][rows of x]; none beyond the last that is there
  GqsExpandFn expand[3][2];        // [bits][zeros]
  GqsBatchFn batch[kBatchWidths];  // of tiles.widths
  GqsOffsetsFn offsets;
};

// --- x in int8 ----------------------------------------------------------------------------------
// A group of x, as wide as the groups of W, is multiples of its largest magnitude / 127. The code
// of row m (of four) and column c of unit u is byte 64 u + 16 (c / 4) + 4 m + c % 4.

constexpr int kGqsInt8Rows = 4;
constexpr int kGqsPanelRows = 16;
constexpr int kGqsMostRows = 16;  // of all chunks together, whichever kernel takes them

// As GqsDotFn, without zero-points. x_scale: of x's groups, [group][4].
using GqsInt8DotFn = void (*)(const GqsRun& run, const float* x_scale, const uint8_t* x, float* y);
// `groups` groups of a row of x as codes, and their scales (NaN where something is not finite).
using GqsQuantizeFn = void (*)(const float* row, int64_t groups, int group, uint8_t* codes,
                               float* scale);

// Sixteen rows of x. What they have of a group lies together: `head` bytes, scales among them, then
// 256 bytes of codes a unit, in an order that the kernels choose. The codes of W become bytes
// first, 16 a unit, so that products need to know neither the number of bits nor where blocks
// begin. Then the columns are taken in pieces of which x stays in the first-level cache: all parts
// of a run go through one piece before the next.

// codes[units][16] of whole blocks of values.
using GqsCodesFn = void (*)(const uint8_t* values, int64_t blocks, uint8_t* codes);
// The sums of part i, y[i][16], grow by the products of its groups next[i] and on as long as their
// offsets are below `limit`; next[i] moves on. ahead: bytes that are needed next, as many as the
// run's codes take in `values`.
using GqsPanelDotFn = void (*)(const GqsRun& run, const uint8_t* codes, const uint8_t* x,
                               uint32_t limit, const uint8_t* ahead, int bits, int* next, float* y);
// `groups` groups of row m of x, for weights of `bits` bits.
using GqsPackFn = void (*)(const float* row, int64_t groups, int group, int bits, int m,
                           uint8_t* x);

struct GqsPanelKernels {
  int head;
  GqsCodesFn codes[3];            // [bits]
  GqsPanelDotFn dot[kGqsShifts];  // [shift]
  GqsPackFn pack;
};

// One row of int8_kernels.inc.
struct GqsInt8Kernels {
  const char* isa_name;
  GqsInt8DotFn dot[3];  // [bits]
  GqsQuantizeFn quantize;
  const GqsPanelKernels* panel;  // or nullptr: then four rows at a time, however many there are
};

#define SPARSEKERN_GQS_INT8_KERNELS(isa_flag, isa_suffix) \
  extern const GqsInt8Kernels kGqsInt8Kernels_##isa_suffix;
#include "ops/gqs_linear/int8_kernels.inc"
#undef SPARSEKERN_GQS_INT8_KERNELS

// The first row of int8_kernels.inc whose ISA is in the mask, or none: then rows of x are rounded
// and the fp32 kernels multiply them.
const GqsInt8Kernels* SelectGqsInt8Kernels(IsaMask mask);

// --- selection ----------------------------------------------------------------------------------

#define SPARSEKERN_GQS_KERNELS(isa_flag, isa_suffix) \
  extern const GqsKernels kGqsKernels_##isa_suffix;
#include "ops/gqs_linear/kernels.inc"
#undef SPARSEKERN_GQS_KERNELS

// The first row of kernels.inc whose ISA is in the mask.
const GqsKernels& SelectGqsKernels(IsaMask mask);

}  // namespace sparsekern
