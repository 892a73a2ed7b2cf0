// SPDX-License-Identifier: Apache-2.0
// Index and bit arithmetic of the CUDA kernels of bitmap_linear, as functions that the host
// compiles too: tests/cpp walks packed matrices with them, so that only instructions and launches
// need a GPU to be tested.
//
// The kernels read the format as it lies on disk (docs/formats.md). A slice, 16 rows and 64
// columns, is 32 half-words of 32 bits, one for each lane of a warp, and one stretch of values. The
// unit of work is a nibble: four columns of a row, up to four values that lie one behind the other.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "base/cuda/tiles.h"

namespace sparsekern::cuda {

constexpr int kBitmapRows = 16;   // of a panel
constexpr int kBitmapCols = 64;   // of a word
constexpr int kSliceHalves = 32;  // half-words of a slice: row r's are 2 r and 2 r + 1
constexpr int kSliceMaxValues = kBitmapRows * kBitmapCols;
constexpr int64_t kSliceBytes = 128;  // of bits
constexpr int64_t kBitmapHeaderBytes = 64;

// The sections of the structure of a rows x cols matrix.
struct BitmapLayout {
  int64_t panels, words;  // of a row
  int64_t bitmap_at, bytes;
};
SPARSEKERN_HOST_DEVICE BitmapLayout BitmapLayoutOf(int64_t rows, int64_t cols) {
  BitmapLayout s;
  s.panels = DivideUp(rows, kBitmapRows);
  s.words = DivideUp(cols, kBitmapCols);
  s.bitmap_at = kBitmapHeaderBytes + DivideUp((s.panels + 1) * 8, 64) * 64;
  s.bytes = s.bitmap_at + s.panels * s.words * kSliceBytes;
  return s;
}
SPARSEKERN_HOST_DEVICE int64_t SliceAt(const BitmapLayout& s, int64_t panel, int64_t word) {
  return s.bitmap_at + (panel * s.words + word) * kSliceBytes;
}

// Whether the header is that of a rows x cols matrix with value_count kept weights; read where it
// lies, on the device, so that a call waits for nothing.
SPARSEKERN_HOST_DEVICE bool BitmapHeaderFits(const uint8_t* structure, int64_t rows, int64_t cols,
                                             int64_t value_count) {
  uint64_t field[4];  // magic and version, rows, cols, kept
  memcpy(field, structure, sizeof field);
  return field[0] == 0x000000014d424b53u /* SKBM, version 1 */ &&
         field[1] == static_cast<uint64_t>(rows) && field[2] == static_cast<uint64_t>(cols) &&
         field[3] == static_cast<uint64_t>(value_count);
}

// Values before a panel: within the array whatever the offsets hold.
SPARSEKERN_HOST_DEVICE int64_t PanelFirst(const uint8_t* structure, int64_t panel,
                                          int64_t value_count) {
  uint64_t before;
  memcpy(&before, structure + kBitmapHeaderBytes + panel * 8, sizeof before);
  const auto count = static_cast<uint64_t>(value_count);
  return static_cast<int64_t>(before < count ? before : count);
}

// How many values of a slice that begins with value `next` the array has: so many may be read,
// whatever the bits are.
SPARSEKERN_HOST_DEVICE int ValuesLeft(int64_t next, int64_t value_count) {
  const int64_t left = value_count - next;
  return left < 0 ? 0 : left < kSliceMaxValues ? static_cast<int>(left) : kSliceMaxValues;
}

// --- nibbles ------------------------------------------------------------------------------------

SPARSEKERN_HOST_DEVICE int CountBits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __popc(bits);
#else
  return std::popcount(bits);
#endif
}

// Of a half-word's values, those before bit `shift`.
SPARSEKERN_HOST_DEVICE uint32_t BelowMask(int shift) { return (uint32_t{1} << shift) - 1; }
SPARSEKERN_HOST_DEVICE int ValuesBelow(uint32_t half, int shift) {
  return CountBits(half & BelowMask(shift));
}
SPARSEKERN_HOST_DEVICE uint32_t NibbleAt(uint32_t half, int shift) { return half >> shift; }
// Whether column i (0 .. 3) of a nibble is kept (not 0), and where its value lies behind the
// nibble's first; the bits above the nibble's four do not matter.
SPARSEKERN_HOST_DEVICE uint32_t NibbleKeeps(uint32_t nibble, int i) { return nibble & (1u << i); }
SPARSEKERN_HOST_DEVICE int NibblePosition(uint32_t nibble, int i) {
  return static_cast<int>((i > 0 ? nibble & 1u : 0u) + (i > 1 ? nibble >> 1 & 1u : 0u) +
                          (i > 2 ? nibble >> 2 & 1u : 0u));
}
// The same one column at a time: bytes from column i's value to the next one's.
SPARSEKERN_HOST_DEVICE uint32_t NibbleStep(uint32_t nibble, int i, int value_bytes) {
  return (nibble >> i & 1u) * static_cast<uint32_t>(value_bytes);
}

// A warp takes a slice in eight passes of two rows, a lane a nibble in each.
constexpr int kSlicePasses = 8;
SPARSEKERN_HOST_DEVICE int PassHalf(int pass, int lane) { return 4 * pass + lane / 8; }
SPARSEKERN_HOST_DEVICE int PassRow(int pass, int lane) { return 2 * pass + lane / 16; }
// The same in all passes.
SPARSEKERN_HOST_DEVICE int PassShift(int lane) { return lane % 8 * 4; }
SPARSEKERN_HOST_DEVICE int PassColumn(int lane) { return lane % 16 * 4; }

// For mma.m16n8k16 a lane holds of A, for rows lane / 4 and lane / 4 + 8, columns 2 t, 2 t + 1, 2 t
// + 8 and 2 t + 9 (t = lane % 4), and of B the same of one row of x. Sums do not depend on the
// order of columns, so these four are a nibble: columns 16 step + 4 t .. + 3 of the word.
SPARSEKERN_HOST_DEVICE int MmaColumn(int step, int lane) { return 16 * step + lane % 4 * 4; }
SPARSEKERN_HOST_DEVICE int MmaHalf(int step, int lane, int lower) {
  return (lane / 4 + 8 * lower) * 2 + step / 2;
}
SPARSEKERN_HOST_DEVICE int MmaShift(int step, int lane) { return MmaColumn(step, lane) % 32; }

// --- decode: how the work is cut ----------------------------------------------------------------

// Words [begin, end) of a row.
struct BitmapRange {
  int64_t begin, end;
};
SPARSEKERN_HOST_DEVICE BitmapRange RangeOfWords(int64_t words, int64_t index, int64_t count) {
  return BitmapRange{words * index / count, words * (index + 1) / count};
}

// A block of threads has `panels` panels, and `ranges` warps to a panel, each with a range of its
// words; `parts` blocks share a panel. `chunks` blocks side by side have the same panels and
// different rows of x.
struct BitmapWork {
  int64_t panel, chunk;
  int panel_in_block, range_in_block;
  BitmapRange before;  // words of the parts before this block's, as far as this warp counts them
  BitmapRange words;   // of this warp
};
SPARSEKERN_HOST_DEVICE BitmapWork WorkOfWarp(int64_t words, int panels, int ranges, int64_t chunks,
                                             int parts, int64_t block, int part, int warp) {
  BitmapWork w;
  w.chunk = block % chunks;
  w.panel_in_block = warp / ranges;
  w.range_in_block = warp % ranges;
  w.panel = block / chunks * panels + w.panel_in_block;
  const int64_t count = int64_t{parts} * ranges, first = int64_t{part} * ranges;
  w.words = RangeOfWords(words, first + w.range_in_block, count);
  w.before = RangeOfWords(RangeOfWords(words, first, count).begin, w.range_in_block, ranges);
  return w;
}

// --- decode: a warp's memory --------------------------------------------------------------------

// Four slices make a group: 16 bytes of bits for each lane.
constexpr int kGroupSlices = 4;
constexpr int kGroupHalves = kGroupSlices * kSliceHalves;
// A half-word and where its values begin, in bytes from the array's begin, modulo 2^32. The entry
// behind a group's last tells where its values end.
struct BitmapEntry {
  uint32_t bits, at;
};
constexpr int kEntryBytes = (kGroupHalves + 2) * 8;

// The entries of a lane's four half-words, whose values begin at byte `at`, and where they end.
struct LaneEntries {
  BitmapEntry of[4];
  uint32_t end;
};
SPARSEKERN_HOST_DEVICE LaneEntries EntriesOfLane(const uint32_t (&bits)[4], uint32_t at,
                                                 int value_bytes) {
  LaneEntries e;
  for (int i = 0; i < 4; ++i) {
    e.of[i] = BitmapEntry{bits[i], at};
    at += static_cast<uint32_t>(CountBits(bits[i]) * value_bytes);
  }
  e.end = at;
  return e;
}

// Values are copied in aligned chunks of 16 bytes. The first chunk's byte in the array, when the
// group's values begin at byte group_at, which is not modulo 2^32 and at most 16 KB before.
SPARSEKERN_HOST_DEVICE int64_t FirstChunk(int64_t group_at, uint32_t begin) {
  const int64_t at = group_at + (begin - static_cast<uint32_t>(group_at));
  return at - at % 16;
}
SPARSEKERN_HOST_DEVICE int ChunksOf(uint32_t begin, uint32_t end) {
  return begin == end ? 0 : static_cast<int>(((begin & 15u) + (end - begin) + 15u) / 16u);
}
// Of `chunks` that begin at byte `from`, those that the array of `total` bytes reaches into; the
// others are not copied.
SPARSEKERN_HOST_DEVICE int ChunksInside(int chunks, int64_t from, int64_t total) {
  const int64_t inside = (total - from + 15) / 16;
  return total <= from ? 0 : inside < chunks ? static_cast<int>(inside) : chunks;
}
// How many bytes the array has from chunk 0 on, as far as its chunks can reach, and of chunk c.
SPARSEKERN_HOST_DEVICE int BytesLeft(int64_t from, int64_t total) {
  const int64_t left = total - from;
  return left < 2 * kSliceMaxValues * 4 ? static_cast<int>(left) : 2 * kSliceMaxValues * 4;
}
SPARSEKERN_HOST_DEVICE int ChunkBytes(int left, int c) {
  return left - c * 16 < 16 ? left - c * 16 : 16;
}
// Where in its copy what is at byte `at` lies, when the copy's first value is at byte `begin`.
SPARSEKERN_HOST_DEVICE uint32_t InCopy(uint32_t at, uint32_t begin) { return at - (begin & ~15u); }

// Of a slice: its values from an aligned address on, and rows of x, padded against bank conflicts.
SPARSEKERN_HOST_DEVICE constexpr int CopyBytes(int value_bytes) {
  return kSliceMaxValues * value_bytes + 16;
}
SPARSEKERN_HOST_DEVICE constexpr int XStride(int x_bytes) { return kBitmapCols * x_bytes + 32; }
SPARSEKERN_HOST_DEVICE constexpr int StageBytes(int value_bytes, int x_bytes, int rows_of_x) {
  return CopyBytes(value_bytes) + rows_of_x * XStride(x_bytes);
}
// Copies of x: chunk c is of these columns of a row, 16 bytes at this place.
struct XChunk {
  int row, column, at;
};
SPARSEKERN_HOST_DEVICE int XChunks(int x_bytes, int rows_of_x) {
  return rows_of_x * (kBitmapCols * x_bytes / 16);
}
// Shifts, because a division for each slice would be a tenth of decode's instructions.
SPARSEKERN_HOST_DEVICE XChunk XChunkOf(int c, int x_bytes) {
  const int row_shift = x_bytes == 4 ? 4 : 3, column_shift = x_bytes == 4 ? 2 : 3;
  const int row = c >> row_shift, chunk = c & ((1 << row_shift) - 1);
  return XChunk{row, chunk << column_shift, row * XStride(x_bytes) + chunk * 16};
}
// Slices whose copies are under way or being used; two where three would leave a multiprocessor
// with a block of eight warps or two.
SPARSEKERN_HOST_DEVICE constexpr int StagesOf(int value_bytes, int rows_of_x) {
  return value_bytes == 4 || rows_of_x >= 8 ? 2 : 3;
}
SPARSEKERN_HOST_DEVICE constexpr int WarpBytes(int value_bytes, int x_bytes, int rows_of_x) {
  return 2 * kEntryBytes +
         StagesOf(value_bytes, rows_of_x) * StageBytes(value_bytes, x_bytes, rows_of_x);
}

}  // namespace sparsekern::cuda
