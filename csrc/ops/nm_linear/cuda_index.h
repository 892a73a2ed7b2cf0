// SPDX-License-Identifier: Apache-2.0
// Index arithmetic of the CUDA kernels of nm_linear, as functions that the host compiles too:
// tests/cpp walks packed matrices with them, and emulates the tensor cores' fragments on them, so
// that only instructions and launches need a GPU to be tested.
//
// The kernels read the format as it lies on disk (docs/formats.md), the tensor cores' too: no
// second layout is made. A panel's 16 rows are the 16 rows of an mma's A operand; its steps are the
// columns of A compressed, side by side as `ldmatrix.trans` takes them; a word is the metadata of
// one row for the 32 columns of mma.sp.m16n8k32 and of wgmma.sp.m64nNk32.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/cuda/tiles.h"

namespace sparsekern::cuda {

// What follows from a structure's header; `consistent` when it belongs to arrays of the given sizes
// and a matrix of the given shape.
struct NmLayout {
  int64_t rows, cols, steps, words, panels;
  int window, field_bits, steps_per_window;
  bool consistent;
};

constexpr int64_t kNmHeaderBytes = 64;
constexpr int kNmPanelRows = 16;

SPARSEKERN_HOST_DEVICE int NmFieldBits(int window) {
  return window == 4 ? 2 : window == 16 ? 4 : 8;
}

// The layout of a rows x cols matrix with windows of `window` columns that keep steps_per_window;
// `consistent` says whether the arrays have its sizes.
SPARSEKERN_HOST_DEVICE NmLayout NmLayoutOf(int64_t rows, int64_t cols, int window,
                                           int steps_per_window, int64_t structure_bytes,
                                           int64_t value_count) {
  NmLayout s;
  s.rows = rows;
  s.cols = cols;
  s.window = window;
  s.field_bits = NmFieldBits(window);
  s.steps_per_window = steps_per_window;
  s.steps = DivideUp(cols, window) * steps_per_window;
  s.words = DivideUp(s.steps * s.field_bits, 32);
  s.panels = DivideUp(rows, kNmPanelRows);
  s.consistent = steps_per_window >= 1 && steps_per_window < window &&
                 structure_bytes == kNmHeaderBytes + s.panels * s.words * kNmPanelRows * 4 &&
                 value_count == s.panels * s.steps * kNmPanelRows;
  return s;
}

// From the header, read where it lies: on the device, without a copy to the host, so that a call
// needs no synchronization and can be captured in a graph.
SPARSEKERN_HOST_DEVICE NmLayout ReadNmLayout(const uint8_t* structure, int64_t structure_bytes,
                                             int64_t value_count, int64_t rows, int64_t cols) {
  uint64_t field[5];  // magic and version, rows, cols, n and m, steps
  memcpy(field, structure, sizeof field);
  const uint64_t n = field[3] & 0xffffffffu, m = field[3] >> 32;
  const bool known = (m == 2 || m == 4 || m == 8 || m == 16 || m == 32) && n >= 1 && n < m;
  const int window = m <= 4 ? 4 : m <= 16 ? 16 : 32;
  const int per_window = known ? static_cast<int>(window / static_cast<int>(m) * n) : 1;
  NmLayout s = NmLayoutOf(rows, cols, window, per_window, structure_bytes, value_count);
  s.consistent = s.consistent && known && field[0] == 0x000000014d4e4b53u /* SKNM, version 1 */ &&
                 field[1] == static_cast<uint64_t>(rows) &&
                 field[2] == static_cast<uint64_t>(cols) &&
                 field[4] == static_cast<uint64_t>(s.steps);
  return s;
}

// The column of the field `index` of a word, relative to its window: within the window whatever the
// bits are.
SPARSEKERN_HOST_DEVICE int NmColumn(uint32_t word, int index, int window) {
  return static_cast<int>((word >> (index * NmFieldBits(window))) &
                          static_cast<uint32_t>(window - 1));
}

// --- step -> window -----------------------------------------------------------------------------

// j / steps_per_window as a product and a shift: exact for j < (8192 / window) * steps_per_window,
// the steps of 8192 columns, without overflow of 32 bits (tests/cpp tries all).
SPARSEKERN_HOST_DEVICE uint32_t NmReciprocal(int steps_per_window) {
  return (1u << 20) / static_cast<uint32_t>(steps_per_window) + 1;
}
SPARSEKERN_HOST_DEVICE int NmWindowOf(int j, uint32_t reciprocal) {
  return static_cast<int>((static_cast<uint32_t>(j) * reciprocal) >> 20);
}

// --- decode -------------------------------------------------------------------------------------

constexpr int kDecodeWarps = 8;        // of a block of threads; each takes a panel
constexpr int kDecodeFloats = 8192;    // of x in shared memory: 8192 columns of one row
constexpr int kDecodeSplitCols = 512;  // columns are split in multiples of it: whole words

// A thread loads 16 bytes at a time: so many rows of one step.
SPARSEKERN_HOST_DEVICE constexpr int DecodeRows(int value_bytes) { return 16 / value_bytes; }
// Threads side by side that have one step.
SPARSEKERN_HOST_DEVICE constexpr int DecodeThreadsOfStep(int value_bytes) { return value_bytes; }
// Steps in a row of one thread, from the same words: as many as keep what the warp looks up in x at
// a time, at 2:4, within 32 columns, that is 32 banks. (int8: 64 columns.)
SPARSEKERN_HOST_DEVICE constexpr int DecodeRun(int value_bytes) { return value_bytes == 4 ? 2 : 1; }
// Steps of a warp at a time.
SPARSEKERN_HOST_DEVICE constexpr int DecodeStride(int value_bytes) {
  return 32 / DecodeThreadsOfStep(value_bytes) * DecodeRun(value_bytes);
}
SPARSEKERN_HOST_DEVICE constexpr int DecodeFirstStep(int lane, int value_bytes) {
  return lane / DecodeThreadsOfStep(value_bytes) * DecodeRun(value_bytes);
}
SPARSEKERN_HOST_DEVICE constexpr int DecodeFirstRow(int lane, int value_bytes) {
  return lane % DecodeThreadsOfStep(value_bytes) * DecodeRows(value_bytes);
}

// The columns of part `part` of `parts`, [begin, end), end perhaps beyond cols.
struct NmColumns {
  int64_t begin, end;
};
SPARSEKERN_HOST_DEVICE NmColumns DecodePart(int64_t cols, int part, int parts) {
  const int64_t units = DivideUp(cols, kDecodeSplitCols);
  return NmColumns{units * part / parts * kDecodeSplitCols,
                   units * (part + 1) / parts * kDecodeSplitCols};
}

// --- tiles of the batch kernels -----------------------------------------------------------------

constexpr int kTileSteps = kTileCols / 4 * 2;  // kept weights of a row in them, at 2:4
constexpr int kPanelTileBytes = kTileSteps * kNmPanelRows * 2;

// Byte offset in shared memory of rows 8 half .. 8 half + 7 of one step of a panel, 16-bit values.
// The halves of four steps in eight are exchanged: eight steps, one matrix of ldmatrix, are then in
// 32 different banks.
SPARSEKERN_HOST_DEVICE int ValueOffset(int panel, int step, int half) {
  return panel * kPanelTileBytes + step * 32 + (half ^ ((step >> 2) & 1)) * 16;
}
// Of the word of a lane; the tile holds two words a row.
SPARSEKERN_HOST_DEVICE int WordOffset(int panels, int panel, int word, int lane) {
  return ((word * panels + panel) * kNmPanelRows + lane) * 4;
}

// --- mma.sp.m16n8k32, 16-bit --------------------------------------------------------------------

// Which 8x8 matrix row each lane of a warp names to ldmatrix.x4 ...
struct ValueAddress {
  int step, half;
};
// ... for A, transposed: the matrices are (steps 0-7, rows 0-7), (0-7, 8-15), (8-15, 0-7),
// (8-15, 8-15) of sixteen steps, in the order of A's registers.
SPARSEKERN_HOST_DEVICE ValueAddress SparseAOfLane(int lane) {
  return ValueAddress{(lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1};
}
// ... for B: rows of x 0-7, columns 0-7, 8-15, 16-23, 24-31.
SPARSEKERN_HOST_DEVICE RowAddress SparseBOfLane(int lane) {
  return RowAddress{lane & 7, lane >> 3};
}

// The metadata register of a lane: of each group of four lanes, 0 and 1 hold the metadata that
// selector 0 takes, 2 and 3 that of selector 1. Lanes 0 and 2 have columns 0-15, lanes 1 and 3
// columns 16-31; the low half is of row lane / 4, the high one of row lane / 4 + 8. So one register
// serves two products: `upper` and `lower` are the words of rows lane / 4 and lane / 4 + 8 for the
// product that has the lane's selector. wgmma.sp.m64nNk32 takes the same from each of its four
// warps, each of which has 16 of the 64 rows, and the same fragments of A.
SPARSEKERN_HOST_DEVICE int MetadataSelector(int lane) { return (lane >> 1) & 1; }
SPARSEKERN_HOST_DEVICE uint32_t Metadata(uint32_t upper, uint32_t lower, int lane) {
  const int shift = (lane & 1) * 16;  // no branch: the warp must be together for what follows
  return ((upper >> shift) & 0xffffu) | ((lower >> shift) << 16);
}
// Beyond the matrix words are 0, and 0 would be column 0 twice: not allowed as ordered metadata.
// Makes columns 0 and 1 of it.
SPARSEKERN_HOST_DEVICE uint32_t OrderedMetadata(uint32_t metadata) {
  const uint32_t used = metadata | (metadata >> 1) | (metadata >> 2) | (metadata >> 3);
  return metadata | ((~used & 0x11111111u) << 2);
}

}  // namespace sparsekern::cuda
