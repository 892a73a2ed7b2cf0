// SPDX-License-Identifier: Apache-2.0
// N:M masks: of every m consecutive scores of a row, the n largest. And packing by a mask or by
// magnitude.
#pragma once

#include <cstdint>
#include <string>

#include "sparsekern/dtype.h"
#include "sparsekern/isa.h"
#include "sparsekern/nm.h"
#include "sparsekern/parallel.h"
#include "sparsekern/status.h"

namespace sparsekern {

// score: [rows, cols], contiguous, kF32, kBF16 or kF16; mask: [rows, cols], 1 = kept, 0 = not. In
// each group of m consecutive columns (m = 2, 4, 8, 16 or 32; groups never cross rows) the n
// largest scores are kept, 1 <= n < m; in a short last group of k columns, min(n, k). Between equal
// scores the lower index is kept; -0.0 equals 0.0; a NaN ranks below every number, -inf too.
// magnitude: |score| instead of score. transposed: score and mask lie in memory as [cols, rows], so
// that groups go down the columns there.
struct NmMaskArgs {
  const void* score = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t n = 0;
  int64_t m = 0;
  bool magnitude = false;
  uint8_t* mask = nullptr;
  bool transposed = false;
};
Status NmMask(const NmMaskArgs& args, const ParallelFor& parallel_for);

// The kernel that an ISA mask selects, e.g. "nm_mask_m4_f32__x86_avx512"; m and dtype as above. A
// pure function.
std::string NmMaskKernelName(int64_t m, DType dtype, IsaMask mask);

// Dense weights into the nm format by vector kernels, for training, where it happens in every step.
// What is made equals NmPacker's to the bit.
//
// layout: of PlanNm. dense: [layout.rows, layout.cols] elements of kF32, kBF16 or kF16, strides in
// elements, of which one is 1; so W^T is W with its strides exchanged.
// mask: the same shape with strides of its own, of which one is 1; nonzero = kept. A group that
// keeps fewer than n gets its lowest other columns, as zero. nullptr: each group keeps its n
// largest magnitudes, those that NmMask chooses.
// values: layout.value_count() elements; structure: NmStructureBytes(layout) bytes. Both are
// written whole.
struct NmPackArgs {
  NmStructure layout;
  const void* dense = nullptr;
  DType dtype = DType::kF32;
  int64_t row_stride = 0;
  int64_t col_stride = 0;
  const uint8_t* mask = nullptr;
  int64_t mask_row_stride = 0;
  int64_t mask_col_stride = 0;
  void* values = nullptr;
  void* structure = nullptr;
};
// kInvalidValue also for a mask that keeps more than n of a group, with its row and columns; values
// and structure are of no use then.
Status NmPack(const NmPackArgs& args, const ParallelFor& parallel_for);

}  // namespace sparsekern
