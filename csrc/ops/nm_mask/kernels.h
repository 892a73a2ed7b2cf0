// SPDX-License-Identifier: Apache-2.0
// What an ISA file offers to the drivers nm_mask.cc and nm_pack.cc.
#pragma once

#include <cstdint>

#include "sparsekern/dtype.h"
#include "sparsekern/isa.h"
#include "sparsekern/nm.h"

namespace sparsekern {

// m = 2, 4, 8, 16, 32.
enum : int { kNmGroupSizes = 5 };

// The mask of `count` consecutive scores, which begin a group and may end in a short one.
using NmMaskFn = void (*)(const void* score, int64_t count, int n, bool magnitude, uint8_t* mask);

// Bits of positive infinity in the upper bits of an int32; greater magnitudes are NaN.
static constexpr int32_t InfinityBits(DType dtype) {
  return dtype == DType::kF16 ? 0x7c000000 : 0x7f800000;
}

// Scores whose groups go down the columns; strides from one row to the next, in elements.
struct NmColumns {
  const void* score;
  int64_t stride;
  DType dtype;
  int n;
  bool magnitude;
  uint8_t* mask;
  int64_t mask_stride;
};
// `cols` columns of the rows from `row` on: those of one group of m (for m = 2 of up to two), which
// may be a short one.
using NmMaskColumnsFn = void (*)(const NmColumns& job, int64_t row, int rows, int64_t cols);

// A matrix on its way into the nm format: columns of W that are taken at once, whole windows; one
// of two strides is 1, of the mask too.
static constexpr int kNmBlockCols = 32;
struct NmPackJob {
  const void* dense;
  int64_t row_stride;
  int64_t col_stride;
  DType dtype;          // float32, bfloat16 or float16
  const uint8_t* mask;  // nullptr: the n largest magnitudes of each group are kept
  int64_t mask_row_stride;
  int64_t mask_col_stride;
  NmStructure layout;
  uint8_t* values;
  uint8_t* words;
};
// Panels begin to end, every slot and word of them; false where the mask keeps more than n.
using NmPackFn = bool (*)(const NmPackJob& job, int64_t begin, int64_t end);

// One row of kernels.inc.
struct NmMaskKernels {
  const char* isa_name;
  IsaMask isa;
  NmMaskFn run[3][kNmGroupSizes];  // [DType][log2 m - 1]
  NmMaskColumnsFn columns[kNmGroupSizes];
  NmPackFn pack;
};

#define SPARSEKERN_NM_MASK_KERNELS(isa_flag, isa_suffix) \
  extern const NmMaskKernels kNmMaskKernels_##isa_suffix;
#include "ops/nm_mask/kernels.inc"
#undef SPARSEKERN_NM_MASK_KERNELS

// The first row of kernels.inc whose ISA is in the mask.
const NmMaskKernels& SelectNmMaskKernels(IsaMask mask);

}  // namespace sparsekern
