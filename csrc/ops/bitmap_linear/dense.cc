// SPDX-License-Identifier: Apache-2.0
// Batches of bfloat16 by way of somebody else's dense product: W is expanded, a block at a time.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/linear_driver.h"
#include "ops/bitmap_linear/kernels.h"
#include "sparsekern/bitmap_linear.h"

namespace sparsekern {
namespace {

constexpr char kOp[] = "bitmap_linear";

// The second-level cache of the first processors with AMX, so that what was expanded is still there
// when it is multiplied.
constexpr int64_t kBlockBytes = 2 << 20;
// A row of W is expanded for all rows of x: 32 weights in about 4 cycles, with the store. The
// float32 kernel multiplies them, half kept, by 32 rows of x in 16 or more. Counted, not timed.
constexpr int64_t kLeastRows = 32;
constexpr int64_t kSums = 1024;  // floats on the way from a product to y

// Apart from a power of two, as x is in the decode kernels.
int64_t StrideOf(const BitmapStructure& s) { return s.words * kBitmapWord + kBitmapWord; }

int64_t BlockRows(const BitmapStructure& s) {
  const int64_t fitting = kBlockBytes / (StrideOf(s) * static_cast<int64_t>(sizeof(uint16_t)));
  const int64_t panels = std::max<int64_t>(1, fitting / kBitmapLanes);
  return std::min(panels, std::max<int64_t>(1, s.panels)) * kBitmapLanes;
}

bool AllFinite(const LinearArgs& a, int64_t cols, const ParallelFor& parallel_for) {
  constexpr uint16_t kExponent = 0x7f80;
  std::atomic<bool> all{true};
  ForEachRange(parallel_for, a.x_rows, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end && all; ++m) {
      const auto* row = reinterpret_cast<const uint16_t*>(RowAt(a, m));
      bool finite = true;
      for (int64_t k = 0; k < cols; ++k) finite &= (row[k] & kExponent) != kExponent;
      if (!finite) all = false;
    }
  });
  return all;
}

void ExpandRows(const BitmapKernels& kernels, const BitmapMatrix& w, int64_t first, int64_t rows,
                uint16_t* out, const ParallelFor& parallel_for) {
  const int64_t panel = first / kBitmapLanes;
  const int64_t panels = (rows + kBitmapLanes - 1) / kBitmapLanes;
  ForEachRange(parallel_for, panels, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      kernels.expand(PanelAt(w, panel + p), out + p * kBitmapLanes * StrideOf(w.structure),
                     StrideOf(w.structure));
    }
  });
}

void Store(const TileKernels& tiles, const LinearArgs& a, int64_t first, int64_t rows,
           const void* product, const ParallelFor& parallel_for) {
  ForEachRange(parallel_for, a.x_rows, [&](int64_t begin, int64_t end) {
    float sums[kSums];
    for (int64_t m = begin; m < end; ++m) {
      const auto* from = static_cast<const uint16_t*>(product) + m * rows;
      for (int64_t n = 0; n < rows; n += kSums) {
        const int64_t count = std::min(kSums, rows - n);
        tiles.expand[static_cast<int>(a.dtype)](from + n, count, sums);
        StoreRow(tiles, a, nullptr, m, first + n, count, sums);
      }
    }
  });
}

}  // namespace

bool BitmapPrefersDense(const BitmapMatrix& w, const LinearArgs& args, IsaMask mask) {
  return (mask & kAmxBf16) != 0 && w.dtype == DType::kBF16 && args.dtype == DType::kBF16 &&
         args.x_rows >= kLeastRows;
}

Status BitmapLinearDense(const BitmapMatrix& w, const LinearArgs& args,
                         const BitmapDenseProduct& multiply, const ParallelFor& parallel_for) {
  const BitmapStructure& s = w.structure;
  SPARSEKERN_RETURN_IF_ERROR(CheckValues(kOp, w.dtype, w.scale));
  SPARSEKERN_RETURN_IF_ERROR(CheckLinear(kOp, args, s.rows, s.cols));
  if (w.dtype != DType::kBF16 || args.dtype != DType::kBF16) {
    return Status::InvalidType("bitmap_linear: a dense product takes bfloat16 values and x");
  }
  if (args.x_rows == 0 || s.rows == 0) return Status::Ok();
  // A zero of a dense product would meet an infinity that a pruned weight does not.
  if (args.int8_x || !AllFinite(args, s.cols, parallel_for))
    return BitmapLinear(w, args, parallel_for);
  IsaMask mask = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&mask));
  const BitmapKernels& kernels = SelectBitmapKernels(mask);
  const int64_t block = BlockRows(s), stride = StrideOf(s);
  const Scratch weights(block * stride / 2);
  if (weights.data() == nullptr) return OutOfScratch(kOp);
  auto* out = reinterpret_cast<uint16_t*>(weights.data());
  for (int64_t first = 0; first < s.rows; first += block) {
    const int64_t rows = std::min(block, s.rows - first);
    ExpandRows(kernels, w, first, rows, out, parallel_for);
    const void* product = nullptr;
    SPARSEKERN_RETURN_IF_ERROR(multiply.run(multiply.state, {out, rows, stride}, &product));
    Store(kernels.tiles, args, first, rows, product, parallel_for);
  }
  return Status::Ok();
}

}  // namespace sparsekern
