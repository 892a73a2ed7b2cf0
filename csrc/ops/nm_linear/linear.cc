// SPDX-License-Identifier: Apache-2.0
// y = activation(x W^T + bias) for an N:M matrix W: the decode kernel for a few rows of x, the tile
// kernels for more.
#include <algorithm>
#include <cstring>

#include "base/linear_driver.h"
#include "ops/nm_linear/kernels.h"
#include "sparsekern/nm_linear.h"

namespace sparsekern {
namespace {

// Columns that a batch step takes at once: with 64 rows of x 24 KB, which leaves some of a
// first-level cache of 32 KB to weights and sums (128 columns: 25 % slower at 2:4, 3 % faster at
// 1:16).
constexpr int kBlockCols = 96;
// Panels that meet one x block before the next: their sums (128 rows times 64) are 32 KB.
constexpr int kGroupPanels = 8;
constexpr int kGroupRows = kGroupPanels * kNmLanes;
constexpr int kMaxBlockSteps = kBlockCols / 32 * 31;  // 31:32 keeps most

constexpr char kOp[] = "nm_linear";

NmPanel PanelAt(const NmMatrix& w, int64_t panel) {
  const NmStructure& s = w.structure;
  const int64_t values = panel * s.steps * kNmLanes;
  return NmPanel{
      static_cast<const uint8_t*>(w.values) + static_cast<size_t>(values) * SizeOf(w.dtype),
      s.index + static_cast<size_t>(panel * s.words * kNmLanes) * 4, s.steps, s.steps_per_window()};
}

// Where a sixteenth or less is kept, what a block costs besides its products rules: its sums are
// read and written once. And x comes from the second-level cache, if a tile of it fits there. So
// tiles of half the rows of x, with blocks of twice the columns, where that makes it fit
// (4096x4096 at 1:16: 20 %; at 1:8 no gain, at 8192 columns 4 % slower).
constexpr int64_t kSecondLevel = 512 * 1024;
struct BatchShape {
  int tile;  // index into the widths of tiles
  int block_cols;
};

BatchShape ShapeOf(const NmStructure& s, const int (&widths)[kBatchWidths]) {
  const int64_t x_bytes = s.cols * widths[kTileWidth] * static_cast<int64_t>(sizeof(float));
  const bool helps = x_bytes > kSecondLevel && x_bytes / 2 <= kSecondLevel;
  if (16 * s.n > s.m || !helps) return BatchShape{kTileWidth, kBlockCols};
  int tile = kTileWidth;
  while (tile > 0 && 2 * widths[tile] > widths[kTileWidth]) --tile;
  return BatchShape{tile, 2 * kBlockCols};
}

int64_t PaddedCols(const NmStructure& s, int block_cols = kBlockCols) {
  return (s.cols + block_cols - 1) / block_cols * block_cols;
}

Status Decode(const NmKernels& kernels, const NmMatrix& w, const LinearArgs& a,
              const ParallelFor& parallel_for) {
  const NmStructure& s = w.structure;
  const TileKernels& tiles = kernels.tiles;
  const int dtype = static_cast<int>(a.dtype);
  const int rows = static_cast<int>(a.x_rows);
  const int64_t x_stride = PaddedCols(s);
  const Scratch x(x_stride * rows);  // fp32
  if (x.data() == nullptr) return OutOfScratch(kOp);
  for (int m = 0; m < rows; ++m) {
    float* row = x.data() + m * x_stride;
    tiles.expand[dtype](RowAt(a, m), s.cols, row);
    // A filled slot beyond cols must add nothing.
    std::memset(row + s.cols, 0, sizeof(float) * static_cast<size_t>(x_stride - s.cols));
  }
  const NmDecodeFn product = kernels.decode[static_cast<int>(w.dtype)][NmWindowIndex(s.window)];
  const int64_t parts = std::min<int64_t>(parallel_for.threads, s.panels);
  ForEachRange(parallel_for, parts, [&](int64_t begin, int64_t end) {
    float y[kNmMaxDecodeRows * kGroupRows];
    const int64_t last = s.panels * end / parts;
    for (int64_t panel = s.panels * begin / parts; panel < last; panel += kGroupPanels) {
      const int64_t until = std::min(last, panel + kGroupPanels);
      for (int64_t p = panel; p < until; ++p) {
        product(PanelAt(w, p), x.data(), x_stride, rows, y + (p - panel) * kNmLanes, kGroupRows);
      }
      const int64_t first = panel * kNmLanes;
      const int64_t n = std::min(until * kNmLanes, s.rows) - first;
      for (int m = 0; m < rows; ++m) {
        StoreRow(tiles, a, w.scale, m, first, n, y + m * kGroupRows);
      }
    }
  });
  return Status::Ok();
}

// What a batch thread needs for one x tile.
struct BatchScratch {
  BatchScratch(const NmStructure& s, DType dtype, int width, int block_cols)
      : x(PaddedCols(s, block_cols) * width),
        y(kGroupRows * width),
        values(dtype != DType::kF32 ? kMaxBlockSteps * kNmLanes : 0) {}
  bool ok() const { return x.data() != nullptr && y.data() != nullptr && values.data() != nullptr; }

  Scratch x, y, values;
  uint8_t index[kMaxBlockSteps * kNmLanes];
};

// Sums of up to kGroupPanels panels from `panel` on: scratch.y[rows][width].
void BatchPanels(const NmKernels& kernels, const NmMatrix& w, int64_t panel, int64_t until,
                 int width_index, int block_cols, BatchScratch* scratch) {
  const NmStructure& s = w.structure;
  const TileKernels& tiles = kernels.tiles;
  const int width = tiles.widths[width_index];
  const int64_t block_steps = block_cols / s.window * s.steps_per_window();
  const int fields = 32 / s.field_bits;
  for (int64_t block = 0; block * block_steps < s.steps; ++block) {
    const int64_t steps = std::min(block_steps, s.steps - block * block_steps);
    for (int64_t p = panel; p < until; ++p) {
      const NmPanel at = PanelAt(w, p);
      kernels.columns[NmWindowIndex(s.window)](
          at.words + block * block_steps / fields * kNmLanes * 4,
          static_cast<int>(block * block_steps % fields), steps, s.steps_per_window(),
          scratch->index);
      const void* values =
          at.values + static_cast<size_t>(block * block_steps) * kNmLanes * SizeOf(w.dtype);
      if (w.dtype != DType::kF32) {
        tiles.expand[static_cast<int>(w.dtype)](values, steps * kNmLanes, scratch->values.data());
        values = scratch->values.data();
      }
      kernels.batch[width_index](static_cast<const float*>(values), scratch->index,
                                 static_cast<int>(steps),
                                 scratch->x.data() + block * block_cols * width,
                                 scratch->y.data() + (p - panel) * kNmLanes * width, block == 0);
    }
  }
}

Status Batch(const NmKernels& kernels, const NmMatrix& w, const LinearArgs& a,
             const ParallelFor& parallel_for) {
  const NmStructure& s = w.structure;
  const BatchShape shape = ShapeOf(s, kernels.tiles.widths);
  const int64_t groups = (s.panels + kGroupPanels - 1) / kGroupPanels;
  // A filled slot beyond cols must add nothing, so there are zeros.
  const BatchOf of{kOp,
                   w.scale,
                   s.rows,
                   s.cols,
                   PaddedCols(s, shape.block_cols),
                   kGroupRows,
                   s.steps * kNmLanes * s.panels};
  return RunBatch(
      of, kernels.tiles, XTiles(kernels.tiles.widths, a.x_rows, shape.tile), a, parallel_for,
      [&](int64_t part, int64_t parts) { return groups * part / parts; },
      [&](int width) { return BatchScratch(s, w.dtype, width, shape.block_cols); },
      [&](int64_t first, int64_t, int width_index, BatchScratch* scratch) {
        const int64_t panel = first / kNmLanes;
        BatchPanels(kernels, w, panel, std::min(s.panels, panel + kGroupPanels), width_index,
                    shape.block_cols, scratch);
      });
}

}  // namespace

const NmKernels& SelectNmKernels(IsaMask mask) {
#define SPARSEKERN_NM_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return kNmKernels_##isa_suffix;
#include "ops/nm_linear/kernels.inc"
#undef SPARSEKERN_NM_KERNELS
  return kNmKernels_scalar;
}

std::string NmLinearKernelName(const NmMatrix& w, int64_t x_rows, IsaMask mask) {
  const NmKernels& kernels = SelectNmKernels(mask);
  return "nm_linear_" + std::to_string(w.structure.n) + "of" + std::to_string(w.structure.m) + "_" +
         ShortName(w.dtype) + (x_rows <= kernels.max_decode_rows ? "_decode__" : "_batch__") +
         kernels.tiles.isa_name;
}

Status NmLinear(const NmMatrix& w, const LinearArgs& args, const ParallelFor& parallel_for) {
  SPARSEKERN_RETURN_IF_ERROR(CheckValues(kOp, w.dtype, w.scale));
  SPARSEKERN_RETURN_IF_ERROR(CheckLinear(kOp, args, w.structure.rows, w.structure.cols));
  if (args.int8_x) return Status::InvalidValue("nm_linear: there is no product with int8_x");
  if (args.x_rows == 0) return Status::Ok();
  IsaMask mask = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&mask));
  const NmKernels& kernels = SelectNmKernels(mask);
  return args.x_rows <= kernels.max_decode_rows ? Decode(kernels, w, args, parallel_for)
                                                : Batch(kernels, w, args, parallel_for);
}

}  // namespace sparsekern
