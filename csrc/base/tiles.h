// SPDX-License-Identifier: Apache-2.0
// What the drivers of all products share: scratch memory and the cutting of x into tiles.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "base/simd/tile_kernels.h"

namespace sparsekern {

// Floats, 64-byte aligned, not initialized; null when the memory is not to be had.
class Scratch {
 public:
  explicit Scratch(int64_t floats) {
    const uint64_t bytes = (static_cast<uint64_t>(floats) * sizeof(float) + 63) / 64 * 64;
    const bool addressable = bytes <= SIZE_MAX / 2;  // on wasm32 a few wide x tiles are not
    data_ = addressable ? static_cast<float*>(
                              std::aligned_alloc(64, static_cast<size_t>(bytes == 0 ? 64 : bytes)))
                        : nullptr;
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

// The x rows of a batch call, cut into tiles of one width; the last is the narrowest that covers
// the rest, perhaps a little wider than the others.
class XTiles {
 public:
  // `tile` is the index of the width; where it is not the usual one, no tile is wider.
  XTiles(const int (&widths)[kBatchWidths], int64_t x_rows, int tile = kTileWidth);
  int64_t count() const { return count_; }
  int64_t begin(int64_t tile) const { return tile * width_; }
  int64_t rows(int64_t tile) const;  // present
  int width_index(int64_t tile) const { return tile + 1 < count_ ? tile_ : last_; }

 private:
  int64_t x_rows_;
  int tile_;
  int64_t width_;
  int64_t count_;
  int last_;
};

// Rows `begin`..`begin + rows` of x, as the batch kernels take them: `width` apart.
struct XTile {
  int64_t begin;
  int rows;
  int width_index;
  int width;
};

}  // namespace sparsekern
