// SPDX-License-Identifier: Apache-2.0
#include "base/tiles.h"

namespace sparsekern {

XTiles::XTiles(const int (&widths)[kBatchWidths], int64_t x_rows, int tile)
    : x_rows_(x_rows), tile_(tile), width_(widths[tile]), count_(1), last_(0) {
  const int64_t most = tile == kTileWidth ? widths[kBatchWidths - 1] : width_;
  if (x_rows > most) count_ += (x_rows - most + width_ - 1) / width_;
  const int64_t rest = x_rows - (count_ - 1) * width_;
  while (widths[last_] < rest) ++last_;
}

int64_t XTiles::rows(int64_t tile) const {
  return tile + 1 < count_ ? width_ : x_rows_ - begin(tile);
}

}  // namespace sparsekern
