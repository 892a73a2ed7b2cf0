// SPDX-License-Identifier: Apache-2.0
// N:M masks: of every m consecutive scores of a row, the n largest.
#pragma once

#include <cstdint>
#include <string>

#include "sparsekern/dtype.h"
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/status.h"

namespace sparsekern {

// score: [rows, cols], contiguous, kF32, kBF16 or kF16; mask: [rows, cols], 1 = kept, 0 = not. In
// each group of m consecutive columns (m = 2, 4, 8, 16 or 32; groups never cross rows) the n
// largest scores are kept, 1 <= n < m; in a short last group of k columns, min(n, k). Between equal
// scores the lower index is kept; -0.0 equals 0.0; a NaN ranks below every number, -inf too.
// magnitude: |score| instead of score.
struct NmMaskArgs {
  const void* score = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t n = 0;
  int64_t m = 0;
  bool magnitude = false;
  uint8_t* mask = nullptr;
};
Status NmMask(const NmMaskArgs& args, const ParallelFor& parallel_for);

// The kernel that an ISA mask selects, e.g. "nm_mask_m4_f32__x86_avx512"; m and dtype as above. A
// pure function.
std::string NmMaskKernelName(int64_t m, DType dtype, IsaMask mask);

}  // namespace sparsekern
