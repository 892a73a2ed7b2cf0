// SPDX-License-Identifier: Apache-2.0
// Which CUDA kernel of gqs_linear multiplies, and how the work is cut: host arithmetic on sizes
// alone, so that choosing waits for nothing on the device, and tests need none.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/gqs_linear/cuda_index.h"
#include "sparsekern/dtype.h"

namespace sparsekern::cuda {

enum class GqsKernel {
  kDecode,    // a few rows of x: kept groups only, by tasks
  kDenseMma,  // expanded tile by tile for the dense tensor cores
  kFma,       // the same in fp32 multiply-adds
};

struct GqsPlan {
  bool possible = false;  // whether any matrix has arrays of these sizes
  GqsKernel kernel = GqsKernel::kFma;
  // kDecode:
  int rows_of_x = 0;     // at a time: 1, 2 or 4
  int slots = 0;         // of a unit of x in shared memory, see cuda_index.h
  int blocks = 0;        // of threads, that share the tasks
  int shared_bytes = 0;  // for x, of each
};

constexpr int kGqsDecodeMaxRows = 16;  // of x, always
// Few rows of W fill few multiprocessors with tiles, and expanding a tile takes as long for one row
// of x as for 128: so up to these rows of x if rows of x times rows of W are this few for each
// multiprocessor. Counted in instructions, not measured.
constexpr int kGqsDecodeMaxRowsOfFew = 64;
constexpr int64_t kGqsFew = 1000;

// Shared memory of a decode block but for x: entries, zero-points, rows, sums.
constexpr int kGqsDecodeBytes = kGqsEntries * 16 + 4096;
inline int64_t GqsBytesOfX(int64_t cols, int slots) {
  return (DivideUp(cols, 128) * 8 + 1) * slots * kGqsUnit * 4;  // any group
}

// Whether some matrix has arrays of these sizes.
inline bool GqsPossible(const GqsSizes& sizes) {
  if (sizes.rows < 1 || sizes.cols < 1 || sizes.rows >= int64_t{1} << 31 ||
      sizes.cols >= int64_t{1} << 25) {
    return false;
  }
  for (int shift = 4; shift <= 7; ++shift) {
    for (const int bits : {2, 4, 8}) {
      for (const bool zeros : {false, true}) {
        const bool factors = sizes.kind == GqsScale::kU8;
        if (zeros && (factors || sizes.scale_count % 2 != 0)) continue;
        const int64_t groups = zeros ? sizes.scale_count / 2 : sizes.scale_count;
        if (groups >= int64_t{1} << 32) continue;
        // As many tasks as what is left of the structure has room for.
        GqsSizes none = sizes;
        none.scale_count = none.value_bytes = 0;
        const GqsLayout empty = GqsLayoutOf(none, bits, shift, 0, 1, false, factors);
        const int64_t room =
            sizes.structure_bytes - empty.factors - (factors ? GqsAligned(4 * sizes.rows) : 0);
        const int64_t least = DivideUp(groups << (shift - 4), kGqsTaskUnits);
        const int64_t units = groups << (shift - 4), in_block = 32 / bits;
        if (groups <= sizes.rows * empty.row_groups &&
            sizes.value_bytes == DivideUp(units, in_block) * kGqsBlockBytes &&
            room >= GqsAligned(4 * least) && room <= GqsAligned(4 * groups) && room % 64 == 0) {
          return true;
        }
      }
    }
  }
  return false;
}

inline GqsPlan PlanGqsLinear(const GqsSizes& sizes, int64_t x_rows, DType x_dtype,
                             const DeviceLimits& device) {
  GqsPlan plan;
  plan.possible = GqsPossible(sizes);
  const bool few =
      x_rows <= kGqsDecodeMaxRowsOfFew && x_rows * sizes.rows <= kGqsFew * device.multiprocessors;
  if (x_rows <= kGqsDecodeMaxRows || few) {
    // More rows of x at a time decode W less often; x must fit. With one row two copies of it spare
    // conflicts of banks, if then two blocks of threads still fit into a multiprocessor.
    struct Choice {
      int rows_of_x, slots, times;
    };
    for (const Choice c : {Choice{4, 4, 1}, {2, 2, 1}, {1, 2, 2}, {1, 1, 1}}) {
      const int64_t bytes = GqsBytesOfX(sizes.cols, c.slots);
      const int64_t all = bytes + kGqsDecodeBytes;
      if ((c.rows_of_x + 1) / 2 >= x_rows && c.rows_of_x > 1) continue;  // too many at a time
      if (all * c.times > device.shared_bytes) continue;
      plan.kernel = GqsKernel::kDecode;
      plan.rows_of_x = c.rows_of_x;
      plan.slots = c.slots;
      plan.shared_bytes = static_cast<int>(bytes);
      // No more than there may be tasks: 1024 units of two bits are 4 KB.
      const int64_t most = DivideUp(sizes.value_bytes, 4096);
      const int64_t fill = device.multiprocessors * (2 * all <= device.shared_bytes ? 2 : 1);
      plan.blocks = static_cast<int>(std::max<int64_t>(1, std::min(most, fill)));
      return plan;
    }
  }
  const bool half_x = x_dtype == DType::kBF16 || x_dtype == DType::kF16;
  plan.kernel = half_x ? GqsKernel::kDenseMma : GqsKernel::kFma;
  return plan;
}

}  // namespace sparsekern::cuda
