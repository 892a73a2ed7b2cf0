// SPDX-License-Identifier: Apache-2.0
// What the drivers of the linear layers of all formats share: checks, addresses, the split of a
// batch over threads, the way from sums to the result.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/tiles.h"
#include "sparsekern/linear.h"
#include "sparsekern/parallel.h"
#include "sparsekern/status.h"

namespace sparsekern {

Status CheckValues(const char* op, DType dtype, const float* scale);
Status CheckActivations(const char* op, DType dtype, Activation activation);
Status CheckLinear(const char* op, const LinearArgs& args, int64_t rows, int64_t cols);
Status OutOfScratch(const char* op);

inline const uint8_t* RowAt(const LinearArgs& a, int64_t m) {
  return static_cast<const uint8_t*>(a.x) + static_cast<size_t>(m) * a.x_stride * SizeOf(a.dtype);
}
inline uint8_t* OutAt(const LinearArgs& a, int64_t m, int64_t n) {
  return static_cast<uint8_t*>(a.y) + (static_cast<size_t>(m) * a.y_stride + n) * SizeOf(a.dtype);
}

// Outputs `first`..`first + n` of x row m, from their sums, which are overwritten. `scale` is that
// of all rows of the matrix, or nullptr.
void StoreRow(const TileKernels& tiles, const LinearArgs& a, const float* scale, int64_t m,
              int64_t first, int64_t n, float* sums);

// The same for an x tile: sums[n][tile.width].
void StoreTile(const TileKernels& tiles, const LinearArgs& a, const float* scale, const XTile& tile,
               int64_t first, int64_t n, float* sums);

// Runs work(panel_begin, panel_end, tile_begin, tile_end) over all panels and x tiles, split over
// threads by x tiles or by panels, whichever leaves the slowest thread less to do. `kept`: weights;
// cut(part, parts): the panel where a part of equal work begins.
template <typename Cut, typename Work>
void ForEachPart(const XTiles& tiles, int64_t kept, int64_t cols, int64_t panels,
                 const ParallelFor& parallel_for, const Cut& cut, const Work& work) {
  const int64_t threads = parallel_for.threads;
  const int64_t per_thread = (tiles.count() + threads - 1) / threads;
  // In units of one kept weight times one full tile: the product, and packing x (about 6 a column).
  const int64_t pack = cols * 6;
  const int64_t by_tiles = per_thread * (kept + pack);
  const int64_t by_panels = tiles.count() * (kept / threads + pack);
  if (threads == 1 || (by_panels < by_tiles && panels >= threads)) {
    ForEachRange(parallel_for, threads, [&](int64_t begin, int64_t end) {
      work(cut(begin, threads), cut(end, threads), int64_t{0}, tiles.count());
    });
  } else {
    ForEachRange(parallel_for, threads, [&](int64_t begin, int64_t end) {
      work(int64_t{0}, panels, std::min(tiles.count(), begin * per_thread),
           std::min(tiles.count(), end * per_thread));
    });
  }
}

}  // namespace sparsekern
