// SPDX-License-Identifier: Apache-2.0
#include "ops/csr_spmm/drivers.h"

#include <algorithm>
#include <cstring>

namespace sparsekern {

int64_t PanelCut(const CsrStructure& s, int64_t part, int64_t parts) {
  const int64_t target = s.steps * part / parts;
  if (part >= parts) return s.panels;
  int64_t low = 0, high = s.panels;  // the first panel that begins at or after `target`
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (s.tile_ptr(middle * s.blocks) < target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == 0) return 0;
  // Of the two cuts around the target, the nearer.
  const int64_t above = s.tile_ptr(low * s.blocks) - target;
  const int64_t below = target - s.tile_ptr((low - 1) * s.blocks);
  return below < above ? low - 1 : low;
}

CsrTile TileAt(const CsrMatrix& w, int64_t t) {
  const CsrStructure& s = w.structure;
  const int64_t first = s.tile_ptr(t);
  // A matrix that keeps nothing may come with a null pointer, to which the kernels could not add a
  // lane's offset.
  static constexpr float kNothing[kCsrLanes * 4] = {};
  const void* values = w.values != nullptr ? w.values : kNothing;
  return CsrTile{static_cast<const uint8_t*>(values) +
                     static_cast<size_t>(first) * kCsrLanes * s.block_rows * SizeOf(w.dtype),
                 s.order + t * s.panel_groups,
                 s.count + t * s.panel_groups,
                 s.index + first * kCsrLanes,
                 s.tile_ptr(t + 1) - first,
                 s.panel_groups};
}

int64_t PanelRows(const CsrStructure& s, int64_t panel) {
  return std::min(s.panel_rows(), s.rows - panel * s.panel_rows());
}

int64_t XTileFloats(const CsrStructure& s, int width) {
  return ((s.blocks - 1) * kCsrBlockCols + kReachableCols) * width;
}

int64_t YPanelFloats(const CsrStructure& s, int width) {
  return static_cast<int64_t>(kReachableGroups) * s.block_rows * width;
}

namespace {

// fp32 scratch for the values of one tile.
int64_t ExpandedFloats(const CsrMatrix& w) {
  int64_t most = 0;
  const int64_t tiles = w.structure.panels * w.structure.blocks;
  for (int64_t t = 0; t < tiles; ++t) {
    most = std::max(most, w.structure.tile_ptr(t + 1) - w.structure.tile_ptr(t));
  }
  return most * kCsrLanes * w.structure.block_rows;
}

int64_t Aligned(int64_t floats) { return (floats + 15) / 16 * 16; }

// Sums of int8 products stay inside 32 bits up to this many columns.
constexpr int64_t kMaxDotCols = 1 << 17;

}  // namespace

BatchMode::BatchMode(IsaMask mask, const CsrMatrix& w, bool quantize)
    : kernels(SelectCsrKernels(mask)),
      int8_x(quantize),
      dot(quantize && w.structure.cols <= kMaxDotCols ? SelectCsrInt8Kernels(mask) : nullptr) {}

BatchScratch::BatchScratch(const BatchMode& mode, const CsrMatrix& w, int width)
    : x_floats_(Aligned(XTileFloats(w.structure, width))),
      y_floats_(Aligned(YPanelFloats(w.structure, width))),
      expanded_floats_(w.dtype != DType::kF32 && mode.dot == nullptr ? Aligned(ExpandedFloats(w))
                                                                     : 0),
      code_floats_(mode.dot != nullptr ? Aligned(x_floats_ / 4) : 0),
      memory_(x_floats_ + y_floats_ + expanded_floats_ + code_floats_ +
              (mode.int8_x ? 2 * Aligned(width) : 0)) {
  x = memory_.data();
  if (x == nullptr) return;
  y = x + x_floats_;
  expanded = y + y_floats_;
  codes = reinterpret_cast<uint8_t*>(expanded + expanded_floats_);
  x_scale = expanded + expanded_floats_ + code_floats_;
  inverse = x_scale + Aligned(width);
}

void QuantizeX(const BatchMode& mode, const CsrMatrix& w, int width_index,
               const BatchScratch& scratch) {
  const int width = mode.widths()[width_index];
  const int64_t cols = w.structure.cols;
  mode.kernels.tiles.tile_steps(scratch.x, cols, width, scratch.x_scale, scratch.inverse);
  if (mode.dot != nullptr) {
    mode.dot->codes[width_index](scratch.x, cols, width, scratch.inverse, scratch.codes);
  } else {
    mode.kernels.tiles.quantize_tile(scratch.x, cols, width, scratch.inverse);
  }
}

void BatchPanel(const BatchMode& mode, const CsrMatrix& w, int64_t panel, int width_index,
                const BatchScratch& scratch, const PanelOutput* output) {
  const CsrStructure& s = w.structure;
  const CsrKernels& kernels = mode.kernels;
  const int width = mode.widths()[width_index];
  const int64_t rows = PanelRows(s, panel);
  for (int64_t block = 0; block < s.blocks; ++block) {
    const bool first = block == 0, last = block + 1 == s.blocks;
    CsrTile tile = TileAt(w, panel * s.blocks + block);
    if (tile.steps == 0 && !first && !last) continue;
    const int64_t at = block * kCsrBlockCols * width;
    if (mode.dot != nullptr) {
      int32_t* sums = reinterpret_cast<int32_t*>(scratch.y);
      mode.dot->batch[Log2(s.block_rows)][width_index](tile, scratch.codes + at, width, sums,
                                                       first);
      if (last) mode.dot->rescale(sums, rows, width, scratch.x_scale);
      continue;
    }
    if (w.dtype != DType::kF32 && tile.steps != 0) {
      kernels.tiles.expand[static_cast<int>(w.dtype)](
          tile.values, tile.steps * kCsrLanes * s.block_rows, scratch.expanded);
      tile.values = scratch.expanded;
    }
    kernels.tiles.batch[Log2(s.block_rows)][width_index](tile, scratch.x + at, scratch.y, first,
                                                         last ? output : nullptr);
  }
  if (mode.int8_x && mode.dot == nullptr)
    kernels.tiles.rescale(scratch.y, rows, width, scratch.x_scale);
}

Status CheckMatrix(const char* op, const CsrMatrix& w, bool int8_x) {
  SPARSEKERN_RETURN_IF_ERROR(CheckValues(op, w.dtype, w.scale));
  if (int8_x && w.dtype != DType::kI8) {
    return Status::InvalidType(std::string(op) + ": int8_activations needs int8 values, got " +
                               Name(w.dtype));
  }
  return Status::Ok();
}

}  // namespace sparsekern
