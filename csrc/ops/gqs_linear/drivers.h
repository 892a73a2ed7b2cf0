// SPDX-License-Identifier: Apache-2.0
// What the drivers of gqs_linear share.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "base/linear_driver.h"
#include "ops/gqs_linear/kernels.h"
#include "sparsekern/gqs_linear.h"

namespace sparsekern {

constexpr char kGqsOp[] = "gqs_linear";

constexpr int kGqsMaskWord = 16;  // groups
inline int64_t PaddedGroups(const GqsStructure& s) { return s.words * kGqsMaskWord; }
inline int64_t PaddedCols(const GqsStructure& s) { return PaddedGroups(s) * s.group; }
inline int GqsShift(const GqsStructure& s) {  // a group has 2^shift units
  return std::countr_zero(static_cast<unsigned>(s.units_per_group()));
}
inline const uint8_t* MaskOf(const GqsStructure& s, int64_t row) {
  return s.mask + 2 * row * s.words;
}

// Scales, or zero-points, of groups `first` and on as fp32; whole vectors are converted wherever
// groups follow, so `out` has room for kGqsSlack more. base: 0, or s.groups for zero-points.
inline void ExpandScales(const TileKernels& tiles, const GqsMatrix& w, int64_t base, int64_t first,
                         int64_t count, float* out) {
  const int64_t n =
      std::min((count + kGqsSlack - 1) / kGqsSlack * kGqsSlack, w.structure.groups - first);
  const uint8_t* from =
      static_cast<const uint8_t*>(w.scale) + static_cast<size_t>(base + first) * SizeOf(w.kind);
  if (w.kind == GqsScale::kU8) {
    for (int64_t i = 0; i < n; ++i) out[i] = from[i];
  } else {
    tiles.expand[static_cast<int>(w.kind)](from, n, out);
  }
}

// Whether x becomes integers where there are kernels for that; else its groups are rounded, and
// fp32 kernels multiply them. There are none for zero-points, and two rows are faster in fp32.
inline bool UsesGqsInt8(const GqsStructure& s, int64_t x_rows, bool int8_x) {
  return int8_x && !s.zeros && x_rows > 2;
}

// row_scale: the factors of the rows, or nullptr. int8: or nullptr.
Status GqsDecode(const GqsKernels& kernels, const GqsInt8Kernels* int8, const GqsMatrix& w,
                 const LinearArgs& a, const float* row_scale, const ParallelFor& parallel_for);
Status GqsBatch(const GqsKernels& kernels, const GqsMatrix& w, const LinearArgs& a,
                const float* row_scale, const ParallelFor& parallel_for);

}  // namespace sparsekern
