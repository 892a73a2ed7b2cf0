// SPDX-License-Identifier: Apache-2.0
// What the drivers of the linear layers of all formats share: checks, addresses, the split of a
// batch over threads, the way from sums to the result.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

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

// What RunBatch must know of a matrix.
struct BatchOf {
  const char* op;
  const float* scale;  // of its rows, or nullptr
  int64_t rows;
  int64_t cols;
  int64_t padded_cols;  // of x that its kernels may read; those at or beyond `cols` are 0
  int64_t panel_rows;   // whose sums are made together
  int64_t kept;         // weights
};

// All of y, x tile by x tile, each packed once by the thread that needs it. make_scratch(width)
// answers what a thread needs for tiles up to that width: ok(), x[padded_cols][width] and
// y[panel_rows][width] at least, and Packed(width) if x is not ready when packed; sums(first, n,
// width_index, &scratch) makes y for n rows of the matrix; cut is that of ForEachPart.
template <typename MakeScratch, typename Cut, typename Sums>
Status RunBatch(const BatchOf& of, const TileKernels& tiles, const XTiles& x_tiles,
                const LinearArgs& a, const ParallelFor& parallel_for, const Cut& cut,
                const MakeScratch& make_scratch, const Sums& sums) {
  const auto dtype = static_cast<int>(a.dtype);
  const int widest =
      tiles.widths[std::max(x_tiles.width_index(0), x_tiles.width_index(x_tiles.count() - 1))];
  std::atomic<bool> failed{false};
  const auto work = [&](int64_t panel_begin, int64_t panel_end, int64_t tile_begin,
                        int64_t tile_end) {
    if (panel_begin >= panel_end || tile_begin >= tile_end) return;
    auto scratch = make_scratch(widest);
    if (!scratch.ok()) {
      failed = true;
      return;
    }
    for (int64_t t = tile_begin; t < tile_end; ++t) {
      const int width_index = x_tiles.width_index(t);
      const int width = tiles.widths[width_index];
      const XTile tile{x_tiles.begin(t), static_cast<int>(x_tiles.rows(t)), width_index, width};
      tiles.pack_rows[dtype](RowAt(a, tile.begin), a.x_stride, tile.rows, of.cols, width,
                             scratch.x.data());
      std::memset(scratch.x.data() + of.cols * width, 0,
                  sizeof(float) * static_cast<size_t>((of.padded_cols - of.cols) * width));
      if constexpr (requires { scratch.Packed(width); }) scratch.Packed(width);
      for (int64_t p = panel_begin; p < panel_end; ++p) {
        const int64_t first = p * of.panel_rows;
        const int64_t n = std::min(of.panel_rows, of.rows - first);
        sums(first, n, width_index, &scratch);
        StoreTile(tiles, a, of.scale, tile, first, n, scratch.y.data());
      }
    }
  };
  const int64_t panels = (of.rows + of.panel_rows - 1) / of.panel_rows;
  ForEachPart(x_tiles, of.kept, of.cols, panels, parallel_for, cut, work);
  return failed ? OutOfScratch(of.op) : Status::Ok();
}

}  // namespace sparsekern
