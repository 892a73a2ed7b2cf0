// SPDX-License-Identifier: Apache-2.0
// gqs_linear for many rows of x: weights are made fp32 and multiplied tile by tile.
#include <bit>
#include <cstring>

#include "ops/gqs_linear/drivers.h"

namespace sparsekern {
namespace {

// Columns that a step takes at once (with 64 rows of x 32 KB) and rows of W that meet them.
constexpr int kBlockCols = 128;
constexpr int kPanelRows = 64;
constexpr int kBlockUnits = kBlockCols / kGqsUnit;

// What a batch thread needs for one x tile.
struct BatchScratch {
  BatchScratch(const GqsKernels& kernels, const GqsStructure& s, bool int8_x, int width)
      : tiles(kernels.tiles),
        structure(s),
        round_x(int8_x),
        step(2 * width),
        x((PaddedCols(s) + kBlockCols) * width),
        y(kPanelRows * width),
        scale(kPanelRows * s.row_groups + kGqsSlack),
        zero(s.zeros ? kPanelRows * s.row_groups + kGqsSlack : 0) {}
  bool ok() const {
    return x.data() != nullptr && y.data() != nullptr && scale.data() != nullptr &&
           zero.data() != nullptr && step.data() != nullptr;
  }
  // Rounds x[columns][width] where it is to be int8.
  void Packed(int width) const {
    if (!round_x) return;
    float* factor = step.data();
    for (int64_t g = 0; g < structure.row_groups; ++g) {
      float* group = x.data() + g * structure.group * width;
      tiles.tile_steps(group, structure.group, width, factor, factor + width);
      tiles.quantize_tile(group, structure.group, width, factor + width);
      tiles.rescale(group, structure.group, width, factor);
    }
  }

  const TileKernels& tiles;
  const GqsStructure& structure;
  bool round_x;
  Scratch step;  // of a group of each row of x, and what multiplies instead of dividing by it
  Scratch x, y, scale, zero;
};

// Sums of rows first to until: scratch.y[rows][width].
void BatchPanel(const GqsKernels& kernels, const GqsMatrix& w, int64_t first, int64_t until,
                int width_index, const BatchScratch& scratch) {
  const GqsStructure& s = w.structure;
  const int k = s.units_per_group();
  const int width = kernels.tiles.widths[width_index];
  const int per_block = kBlockCols / s.group;  // groups: 1 to 8, so that a byte holds their bits
  const int64_t begin = s.row_ptr(first), count = s.row_ptr(until) - begin;
  if (count > 0) {
    ExpandScales(kernels.tiles, w, 0, begin, count, scratch.scale.data());
    if (s.zeros) {
      ExpandScales(kernels.tiles, w, s.groups, begin, count, scratch.zero.data());
    }
  }
  std::memset(scratch.y.data(), 0, sizeof(float) * static_cast<size_t>((until - first) * width));
  int64_t next[kPanelRows];  // the first kept group of each row that was not met yet
  for (int64_t r = first; r < until; ++r) next[r - first] = s.row_ptr(r);
  const GqsExpandFn expand = kernels.expand[GqsBitsIndex(s.bits)][s.zeros];
  for (int64_t block = 0; block * kBlockCols < s.cols; ++block) {
    const int64_t bit = block * per_block;
    const float* x = scratch.x.data() + block * kBlockCols * width;
    for (int64_t r = first; r < until; ++r) {
      uint32_t kept = MaskOf(s, r)[bit / 8] >> (bit % 8) & ((1u << per_block) - 1);
      if (kept == 0) continue;
      const int64_t g = next[r - first];
      // Never beyond the row, whatever the mask says.
      const int n = std::min<int>(std::popcount(kept), static_cast<int>(s.row_ptr(r + 1) - g));
      next[r - first] += n;
      uint8_t column[kBlockUnits];
      float scale[kBlockUnits], zero[kBlockUnits], weights[kBlockUnits * kGqsUnit];
      for (int i = 0; i < n; ++i, kept &= kept - 1) {
        const int at = std::countr_zero(kept) * s.group;
        for (int j = 0; j < k; ++j) {
          column[i * k + j] = static_cast<uint8_t>(at + j * kGqsUnit);
          scale[i * k + j] = scratch.scale.data()[g - begin + i];
          if (s.zeros) zero[i * k + j] = scratch.zero.data()[g - begin + i];
        }
      }
      expand(
          GqsUnits{w.values, g * k, static_cast<int64_t>(n) * k, scale, s.zeros ? zero : nullptr},
          weights);
      kernels.batch[width_index](weights, column, n * k, x, scratch.y.data() + (r - first) * width);
    }
  }
}

}  // namespace

Status GqsBatch(const GqsKernels& kernels, const GqsMatrix& w, const LinearArgs& a,
                const float* row_scale, const ParallelFor& parallel_for) {
  const GqsStructure& s = w.structure;
  const int64_t panels = (s.rows + kPanelRows - 1) / kPanelRows;
  // The panel at which the kept groups of a part begin.
  const auto cut = [&](int64_t part, int64_t parts) {
    if (part == parts) return panels;
    const int64_t before = s.groups * part / parts;
    int64_t low = 0, high = panels;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      s.row_ptr(middle * kPanelRows) < before ? low = middle + 1 : high = middle;
    }
    return low;
  };
  // A weight beyond cols, which is 0 before its zero-point, must add nothing, so there are zeros.
  const BatchOf of{kGqsOp,     row_scale,         s.rows, s.cols, PaddedCols(s) + kBlockCols,
                   kPanelRows, s.groups * s.group};
  return RunBatch(
      of, kernels.tiles, XTiles(kernels.tiles.widths, a.x_rows), a, parallel_for, cut,
      [&](int width) { return BatchScratch(kernels, s, a.int8_x, width); },
      [&](int64_t first, int64_t n, int width_index, BatchScratch* scratch) {
        BatchPanel(kernels, w, first, first + n, width_index, *scratch);
      });
}

}  // namespace sparsekern
