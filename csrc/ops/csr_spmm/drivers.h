// SPDX-License-Identifier: Apache-2.0
// What the drivers of linear, conv2d and sddmm share: scratch memory, the split of work over
// threads, the product of one x tile with a range of panels.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>

#include "base/linear_driver.h"
#include "ops/csr_spmm/kernels.h"
#include "sparsekern/csr_spmm.h"

namespace sparsekern {

bool UsesDecode(const CsrKernels& kernels, int64_t x_rows);

constexpr int Log2(int block_rows) { return block_rows == 4 ? 2 : block_rows - 1; }

// Which thread takes which panels or x tiles. Panels are cut so that each part has about the same
// number of steps: the tile offsets made at pack time are the table.
int64_t PanelCut(const CsrStructure& s, int64_t part, int64_t parts);

CsrTile TileAt(const CsrMatrix& w, int64_t t);

// How a batch call multiplies: with x as it is, or with each of its rows in int8, where the
// processor has dot products for that (`dot`) or as whole numbers in fp32.
struct BatchMode {
  BatchMode(IsaMask mask, const CsrMatrix& w, bool int8_x);
  const int (&widths() const)[kBatchWidths] {
    return dot != nullptr ? dot->widths : kernels.tiles.widths;
  }

  const CsrKernels& kernels;
  bool int8_x;
  const CsrInt8Kernels* dot;
};

// The memory of a batch thread for one x tile, 64-byte aligned parts of one allocation.
class BatchScratch {
 public:
  BatchScratch(const BatchMode& mode, const CsrMatrix& w, int width);
  bool ok() const { return memory_.data() != nullptr; }

  float* x;         // [>= kReachableCols][width]
  float* y;         // a panel's sums: [kReachableGroups * R][width]
  float* expanded;  // fp32 values of one tile, where the packed ones are not
  uint8_t* codes;   // x in int8, with `dot`
  float* x_scale;   // [width], with int8_x
  float* inverse;   // [width], with int8_x

 private:
  int64_t x_floats_, y_floats_, expanded_floats_, code_floats_;
  Scratch memory_;
};

// The product of one panel with the packed x tile: into `output`, finished; without one into
// scratch.y[panel rows][width], raw. int8 x takes no output.
void BatchPanel(const BatchMode& mode, const CsrMatrix& w, int64_t panel, int width_index,
                const BatchScratch& scratch, const PanelOutput* output);

// Turns the packed tile into what BatchPanel takes with int8 x.
void QuantizeX(const BatchMode& mode, const CsrMatrix& w, int width_index,
               const BatchScratch& scratch);

// A panel's part of an array with one entry a row, or nullptr.
inline const float* PanelPart(const float* per_row, const CsrStructure& s, int64_t panel) {
  return per_row != nullptr ? per_row + panel * s.panel_rows() : nullptr;
}

// Rows of `panel` that exist.
int64_t PanelRows(const CsrStructure& s, int64_t panel);

// Scratch of a batch thread, in floats.
int64_t XTileFloats(const CsrStructure& s, int width);
int64_t YPanelFloats(const CsrStructure& s, int width);

// The batch path: every x tile is packed once by pack(tile, x) and met with each panel in
// run(tile, panel, scratch), over all threads. False: no memory for scratch.
template <typename Pack, typename Run>
bool ForEachTile(const BatchMode& mode, const CsrMatrix& w, int64_t x_rows,
                 const ParallelFor& parallel_for, const Pack& pack, const Run& run) {
  const int (&widths)[kBatchWidths] = mode.widths();
  const XTiles tiles(widths, x_rows);
  const int widest = widths[std::max(tiles.width_index(0), tiles.width_index(tiles.count() - 1))];
  std::atomic<bool> failed{false};
  const CsrStructure& s = w.structure;
  ForEachPart(
      tiles, s.kept * s.block_rows, s.cols, s.panels, parallel_for,
      [&](int64_t part, int64_t parts) { return PanelCut(s, part, parts); },
      [&](int64_t panel_begin, int64_t panel_end, int64_t tile_begin, int64_t tile_end) {
        if (panel_begin == panel_end || tile_begin == tile_end) return;
        const BatchScratch scratch(mode, w, widest);
        if (!scratch.ok()) {
          failed = true;
          return;
        }
        for (int64_t t = tile_begin; t < tile_end; ++t) {
          const int width_index = tiles.width_index(t);
          const XTile tile{tiles.begin(t), static_cast<int>(tiles.rows(t)), width_index,
                           widths[width_index]};
          pack(tile, scratch.x);
          if (mode.int8_x) QuantizeX(mode, w, width_index, scratch);
          for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
            run(tile, panel, scratch);
          }
        }
      });
  return !failed;
}

Status CheckMatrix(const char* op, const CsrMatrix& w, bool int8_x);

}  // namespace sparsekern
