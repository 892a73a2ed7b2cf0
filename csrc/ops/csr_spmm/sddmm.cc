// SPDX-License-Identifier: Apache-2.0
// Gradient of the kept values: a sampled dense-dense product. Threads own panels, and rows of x are
// taken in chunks of a fixed size in order, so every sum has one order whatever the number of
// threads.
#include <algorithm>
#include <cstring>

#include "ops/csr_spmm/drivers.h"

namespace sparsekern {
namespace {

// 128 columns of x times 128 rows are 64 KB: the second-level cache holds them and a panel of
// gradients.
constexpr int kChunk = 128;

}  // namespace

Status CsrSddmm(const CsrStructure& s, const CsrSddmmArgs& a, const ParallelFor& parallel_for) {
  SPARSEKERN_RETURN_IF_ERROR(CheckActivations("csr_sddmm", a.dtype, Activation::kNone));
  if (a.x_rows < 0) return Status::InvalidValue("csr_sddmm: x_rows must be >= 0");
  IsaMask mask = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&mask));
  const CsrKernels& kernels = SelectCsrKernels(mask);
  if (s.steps == 0) return Status::Ok();  // nothing kept: values_grad is empty and may be null
  const size_t element = SizeOf(a.dtype);
  std::memset(a.values_grad, 0, sizeof(float) * static_cast<size_t>(s.value_count()));
  const PackRowsFn pack = kernels.tiles.pack_rows[static_cast<int>(a.dtype)];
  const CsrSddmmFn product = kernels.sddmm[Log2(s.block_rows)];
  CsrMatrix w;
  w.structure = s;
  w.values = a.values_grad;
  const int64_t parts = std::min<int64_t>(parallel_for.threads, s.panels);
  std::atomic<bool> failed{false};
  ForEachRange(parallel_for, parts, [&](int64_t begin, int64_t end) {
    const int64_t first_panel = PanelCut(s, begin, parts);
    const int64_t last_panel = PanelCut(s, end, parts);
    if (first_panel == last_panel) return;
    const Scratch x(XTileFloats(s, kChunk));
    const Scratch grad(YPanelFloats(s, kChunk));
    if (x.data() == nullptr || grad.data() == nullptr) {
      failed = true;
      return;
    }
    for (int64_t m = 0; m < a.x_rows; m += kChunk) {
      const int rows = static_cast<int>(std::min<int64_t>(kChunk, a.x_rows - m));
      pack(static_cast<const uint8_t*>(a.x) + static_cast<size_t>(m) * s.cols * element, s.cols,
           rows, s.cols, kChunk, x.data());
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        const int64_t position = m * s.rows + panel * s.panel_rows();
        pack(static_cast<const uint8_t*>(a.grad) + static_cast<size_t>(position) * element, s.rows,
             rows, PanelRows(s, panel), kChunk, grad.data());
        // Rows of the last group that do not exist: their gradient stays 0.
        std::memset(grad.data() + PanelRows(s, panel) * kChunk, 0,
                    sizeof(float) * (s.panel_rows() - PanelRows(s, panel)) * kChunk);
        for (int64_t block = 0; block < s.blocks; ++block) {
          const int64_t t = panel * s.blocks + block;
          product(TileAt(w, t), grad.data(), x.data() + block * kCsrBlockCols * kChunk, kChunk,
                  a.values_grad + s.tile_ptr(t) * kCsrLanes * s.block_rows);
        }
      }
    }
  });
  return failed ? OutOfScratch("csr_sddmm") : Status::Ok();
}

}  // namespace sparsekern
