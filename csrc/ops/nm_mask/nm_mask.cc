// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/nm_mask.h"

#include <algorithm>

#include "ops/nm_mask/kernels.h"

namespace sparsekern {
namespace {

// Scores of one piece of work where groups do not care about rows: a multiple of every kernel's
// block. Below it threads cost more than they bring.
constexpr int64_t kChunk = 16384;

// -1 when there is no kernel for it.
int GroupSizeIndex(int64_t m) {
  for (int i = 0; i < kNmGroupSizes; ++i) {
    if (m == int64_t{2} << i) return i;
  }
  return -1;
}

}  // namespace

const NmMaskKernels& SelectNmMaskKernels(IsaMask mask) {
#define SPARSEKERN_NM_MASK_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return kNmMaskKernels_##isa_suffix;
#include "ops/nm_mask/kernels.inc"
#undef SPARSEKERN_NM_MASK_KERNELS
  return kNmMaskKernels_scalar;
}

Status NmMask(const NmMaskArgs& a, const ParallelFor& parallel_for) {
  if (a.dtype != DType::kF32 && a.dtype != DType::kBF16 && a.dtype != DType::kF16) {
    return Status::InvalidType(
        std::string("nm_mask: score must be float32, bfloat16 or float16, got ") + Name(a.dtype));
  }
  const int size = GroupSizeIndex(a.m);
  if (size < 0) {
    return Status::Unimplemented("nm_mask: m must be one of 2, 4, 8, 16, 32, got " +
                                 std::to_string(a.m));
  }
  if (a.n < 1 || a.n >= a.m) {
    return Status::InvalidValue("nm_mask: n must be in [1, m - 1] = [1, " +
                                std::to_string(a.m - 1) + "], got " + std::to_string(a.n));
  }
  if (a.rows < 0 || a.cols < 0) {
    return Status::InvalidValue("nm_mask: rows and cols must be >= 0");
  }
  IsaMask mask = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&mask));
  const NmMaskKernels& kernels = SelectNmMaskKernels(mask);
  const int64_t total = a.rows * a.cols;
  if (total == 0) return Status::Ok();
  if (a.transposed) {
    const NmColumns job{a.score,     a.rows, a.dtype, static_cast<int>(a.n),
                        a.magnitude, a.mask, a.rows};
    const int64_t unit = std::max<int64_t>(a.m, 4);  // two groups of two
    ForEachRange(total <= kChunk ? Serial() : parallel_for, (a.cols + unit - 1) / unit,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin * unit; i < std::min(end * unit, a.cols); i += unit) {
                     kernels.columns[size](job, i, static_cast<int>(std::min(unit, a.cols - i)),
                                           a.rows);
                   }
                 });
    return Status::Ok();
  }
  const NmMaskFn run = kernels.run[static_cast<int>(a.dtype)][size];
  const auto* score = static_cast<const uint8_t*>(a.score);
  const int64_t element = static_cast<int64_t>(SizeOf(a.dtype));
  // Where groups end with the rows, the matrix is one long row.
  const bool one_row = a.cols % a.m == 0;
  const int64_t unit = one_row ? kChunk : a.cols;
  const int64_t units = one_row ? (total + kChunk - 1) / kChunk : a.rows;
  ForEachRange(total <= kChunk ? Serial() : parallel_for, units, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * unit; i < std::min(end * unit, total); i += unit) {
      run(score + i * element, std::min(unit, total - i), static_cast<int>(a.n), a.magnitude,
          a.mask + i);
    }
  });
  return Status::Ok();
}

std::string NmMaskKernelName(int64_t m, DType dtype, IsaMask mask) {
  const char* short_names[] = {"f32", "bf16", "f16", "i8"};
  return "nm_mask_m" + std::to_string(m) + "_" + short_names[static_cast<int>(dtype)] + "__" +
         SelectNmMaskKernels(mask).isa_name;
}

}  // namespace sparsekern
