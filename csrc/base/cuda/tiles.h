// SPDX-License-Identifier: Apache-2.0
// Index arithmetic of the tiles that the CUDA products of every family share, as functions that the
// host compiles too: tests/cpp emulates the tensor cores' fragments on them, so that only
// instructions and launches need a GPU to be tested.
#pragma once

#include <cstdint>

#include "base/cuda/host_device.h"
#include "base/cuda/problem.h"

namespace sparsekern::cuda {

SPARSEKERN_HOST_DEVICE int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- tiles of 64 columns in shared memory, 16-bit elements --------------------------------------

constexpr int kTileCols = 64;  // columns of W and x at a time

// Byte offset of columns 8 chunk .. 8 chunk + 7 of a row of 64 16-bit elements. Chunks are permuted
// within the row, so that one chunk of eight rows is in 32 different banks.
SPARSEKERN_HOST_DEVICE int RowOffset(int row, int chunk) {
  return row * (kTileCols * 2) + (chunk ^ (row & 7)) * 16;
}

struct RowAddress {
  int row, chunk;
};

// The matrix descriptor by which wgmma reads such rows, eight or more of them, as its operand B,
// from column 8 chunk on: the order of RowOffset is what it calls a swizzle of 128 bytes. `address`
// is that of the first row in shared memory, a multiple of kDescribedRowsBytes.
constexpr int kDescribedRowsBytes = 8 * kTileCols * 2;  // of eight rows, after which it repeats
SPARSEKERN_HOST_DEVICE uint64_t RowsDescriptor(uint32_t address, int chunk) {
  constexpr uint64_t kLeading = 1;  // unused with this swizzle
  constexpr uint64_t kStride = kDescribedRowsBytes / 16;
  constexpr uint64_t kSwizzle128 = 1;
  const uint32_t start = (address + static_cast<uint32_t>(chunk) * 16) & 0x3ffffu;
  return static_cast<uint64_t>(start / 16) | kLeading << 16 | kStride << 32 | kSwizzle128 << 62;
}

// --- fragments of mma.m16n8, 16-bit -------------------------------------------------------------

// Element i (0 .. 3) of the result in a lane: row of W and row of x within 16 x 8.
SPARSEKERN_HOST_DEVICE int ResultFeature(int lane, int i) { return lane / 4 + (i >> 1) * 8; }
SPARSEKERN_HOST_DEVICE int ResultToken(int lane, int i) { return lane % 4 * 2 + (i & 1); }

// With both operands of m16n8k16 as rows of 64: which 8x8 matrix row each lane of a warp names to
// ldmatrix.x4 ...
// ... for A: (rows 0-7, columns 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
SPARSEKERN_HOST_DEVICE RowAddress DenseAOfLane(int lane) {
  return RowAddress{(lane & 7) + ((lane >> 3) & 1) * 8, lane >> 4};
}
// ... for B, two operands: rows of x 0-7 with columns 0-7, 8-15; rows 8-15 with the same.
SPARSEKERN_HOST_DEVICE RowAddress DenseBOfLane(int lane) {
  return RowAddress{(lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1};
}

// --- tiles of the result ------------------------------------------------------------------------

struct ResultTile {
  int64_t feature, token;
};
// Tile `block` of features x tokens: through the tokens in stripes of eight features, so that the
// blocks at work at a time share both operands in the second-level cache.
SPARSEKERN_HOST_DEVICE ResultTile TileOfBlock(int64_t block, int64_t features, int64_t tokens) {
  const int64_t stripe = block / (8 * tokens);
  const int64_t within = block - stripe * 8 * tokens;
  const int64_t wide = features - stripe * 8 < 8 ? features - stripe * 8 : 8;
  return ResultTile{stripe * 8 + within % wide, within / wide};
}

// Of a block of threads.
struct TileSize {
  int features, rows_of_x;
};
constexpr TileSize kDenseTile = {128, 128};
constexpr TileSize kFmaTile = {64, 64};

inline int64_t CountTiles(const LinearProblem& p, TileSize tile) {
  return DivideUp(p.rows, tile.features) * DivideUp(p.x_rows, tile.rows_of_x);
}

// Floats between the rows of x of a tile's result in shared memory: padded against bank conflicts.
SPARSEKERN_HOST_DEVICE constexpr int ResultStride(int features) { return features + 4; }

}  // namespace sparsekern::cuda
