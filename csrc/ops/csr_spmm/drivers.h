// SPDX-License-Identifier: Apache-2.0
// What the drivers of linear, conv2d and sddmm share: scratch memory, the split of work over
// threads, the product of one x tile with a range of panels.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "ops/csr_spmm/kernels.h"
#include "sparsekern/csr_spmm.h"

namespace sparsekern {

bool UsesDecode(const CsrKernels& kernels, int64_t x_rows);

constexpr int Log2(int block_rows) { return block_rows == 4 ? 2 : block_rows - 1; }

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

// Which thread takes which panels or x tiles. Panels are cut so that each part has about the same
// number of steps: the tile offsets made at pack time are the table.
int64_t PanelCut(const CsrStructure& s, int64_t part, int64_t parts);

// The x rows of a batch call, cut into tiles: as many of the widest as fit, then the narrowest that
// covers the rest.
class XTiles {
 public:
  XTiles(const CsrKernels& kernels, int64_t x_rows);
  int64_t count() const { return count_; }
  int64_t begin(int64_t tile) const { return tile * widest_; }
  int64_t rows(int64_t tile) const;  // present
  int width_index(int64_t tile) const { return tile + 1 < count_ ? kCsrWidths - 1 : last_; }

 private:
  int64_t x_rows_;
  int64_t widest_;
  int64_t count_;
  int last_;
};

// Runs work(panel_begin, panel_end, tile_begin, tile_end) over all panels and x tiles, split over
// threads by x tiles or by panels, whichever leaves the slowest thread less to do.
template <typename Work>
void ForEachPart(const CsrStructure& s, const XTiles& tiles, const ParallelFor& parallel_for,
                 const Work& work) {
  const int64_t threads = parallel_for.threads;
  const int64_t per_thread = (tiles.count() + threads - 1) / threads;
  // In units of one kept weight times one full tile: the product, and packing x (about 6 a column).
  const int64_t pack = s.cols * 6;
  const int64_t by_tiles = per_thread * (s.kept * s.block_rows + pack);
  const int64_t by_panels = tiles.count() * (s.kept * s.block_rows / threads + pack);
  if (threads == 1 || (by_panels < by_tiles && s.panels >= threads)) {
    ForEachRange(parallel_for, threads, [&](int64_t begin, int64_t end) {
      work(PanelCut(s, begin, threads), PanelCut(s, end, threads), int64_t{0}, tiles.count());
    });
  } else {
    ForEachRange(parallel_for, threads, [&](int64_t begin, int64_t end) {
      work(int64_t{0}, s.panels, std::min(tiles.count(), begin * per_thread),
           std::min(tiles.count(), end * per_thread));
    });
  }
}

CsrTile TileAt(const CsrMatrix& w, int64_t t);

// fp32 scratch for the values of one tile; empty when they are fp32 already.
int64_t ExpandedFloats(const CsrMatrix& w);

// y[panel rows][width] = product of one panel with the packed x tile, epilogue applied.
void BatchPanel(const CsrKernels& kernels, const CsrMatrix& w, const CsrEpilogue& epilogue,
                int64_t panel, int width_index, const float* x, float* expanded, float* y);

// Rows of `panel` that exist.
int64_t PanelRows(const CsrStructure& s, int64_t panel);

// Scratch of a batch thread, in floats.
int64_t XTileFloats(const CsrStructure& s, int width);
int64_t YPanelFloats(const CsrStructure& s, int width);

Status CheckMatrix(const char* op, const CsrMatrix& w);
Status CheckActivations(const char* op, DType dtype, Activation activation);
Status OutOfScratch(const char* op);

}  // namespace sparsekern
