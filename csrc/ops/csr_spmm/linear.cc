// SPDX-License-Identifier: Apache-2.0
// y = activation(x W^T + bias) for row-major x: the decode driver for a few rows, the batch driver
// for more.
#include <algorithm>
#include <cstring>

#include "ops/csr_spmm/drivers.h"

namespace sparsekern {
namespace {

Status Decode(const CsrKernels& kernels, const CsrMatrix& w, const LinearArgs& a,
              const ParallelFor& parallel_for) {
  const CsrStructure& s = w.structure;
  const int rows = static_cast<int>(a.x_rows);
  const int64_t x_stride = s.blocks * kCsrBlockCols;
  const Scratch x(x_stride * rows);  // fp32, padded to whole blocks
  if (x.data() == nullptr) return OutOfScratch("csr_linear");
  float x_scale[kMaxDecodeRows];
  for (int m = 0; m < rows; ++m) {
    float* row = x.data() + m * x_stride;
    kernels.tiles.expand[static_cast<int>(a.dtype)](RowAt(a, m), s.cols, row);
    if (a.int8_x) x_scale[m] = kernels.tiles.quantize_row(row, s.cols);
    std::memset(row + s.cols, 0, sizeof(float) * (x_stride - s.cols));
  }
  const CsrDecodeFn product = kernels.decode[static_cast<int>(w.dtype)][Log2(s.block_rows)];
  const int64_t y_stride = YPanelFloats(s, 1);
  const int64_t parts = std::min<int64_t>(parallel_for.threads, s.panels);
  std::atomic<bool> failed{false};
  ForEachRange(parallel_for, parts, [&](int64_t begin, int64_t end) {
    const Scratch y(y_stride * rows);
    if (y.data() == nullptr) {
      failed = true;
      return;
    }
    const int64_t last = PanelCut(s, end, parts);
    for (int64_t panel = PanelCut(s, begin, parts); panel < last; ++panel) {
      for (int m = 0; m < rows; ++m) {
        std::memset(y.data() + m * y_stride, 0, sizeof(float) * s.panel_rows());
      }
      for (int64_t block = 0; block < s.blocks; ++block) {
        product(TileAt(w, panel * s.blocks + block), x.data() + block * kCsrBlockCols, x_stride,
                rows, y.data(), y_stride);
      }
      const int64_t first = panel * s.panel_rows();
      const int64_t n = PanelRows(s, panel);
      for (int m = 0; m < rows; ++m) {
        float* row = y.data() + m * y_stride;
        if (a.int8_x) {
          for (int64_t i = 0; i < n; ++i) row[i] *= x_scale[m];
        }
        StoreRow(kernels.tiles, a, w.scale, m, first, n, row);
      }
    }
  });
  return failed ? OutOfScratch("csr_linear") : Status::Ok();
}

Status Batch(const BatchMode& mode, const CsrMatrix& w, const LinearArgs& a,
             const ParallelFor& parallel_for) {
  const CsrStructure& s = w.structure;
  const CsrKernels& kernels = mode.kernels;
  const int dtype = static_cast<int>(a.dtype);
  const bool done = ForEachTile(
      mode, w, a.x_rows, parallel_for,
      [&](const XTile& tile, float* x) {
        kernels.tiles.pack_rows[dtype](RowAt(a, tile.begin), a.x_stride, tile.rows, s.cols,
                                       tile.width, x);
      },
      [&](const XTile& tile, int64_t panel, const BatchScratch& scratch) {
        BatchPanel(mode, w, panel, tile.width_index, scratch, nullptr);
        StoreTile(kernels.tiles, a, w.scale, tile, panel * s.panel_rows(), PanelRows(s, panel),
                  scratch.y);
      });
  return done ? Status::Ok() : OutOfScratch("csr_linear");
}

}  // namespace

Status CsrLinear(const CsrMatrix& w, const LinearArgs& args, const ParallelFor& parallel_for) {
  SPARSEKERN_RETURN_IF_ERROR(CheckMatrix("csr_linear", w, args.int8_x));
  SPARSEKERN_RETURN_IF_ERROR(CheckLinear("csr_linear", args, w.structure.rows, w.structure.cols));
  if (args.x_rows == 0) return Status::Ok();
  IsaMask mask = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&mask));
  const BatchMode mode(mask, w, args.int8_x);
  return UsesDecode(mode.kernels, args.x_rows) ? Decode(mode.kernels, w, args, parallel_for)
                                               : Batch(mode, w, args, parallel_for);
}

}  // namespace sparsekern
