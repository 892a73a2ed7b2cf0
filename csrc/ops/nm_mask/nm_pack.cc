// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <string>

#include "ops/nm_mask/kernels.h"
#include "sparsekern/nm_mask.h"

namespace sparsekern {
namespace {

// The first group of which a mask keeps too much.
Status TooMuch(const NmPackArgs& a) {
  const NmStructure& s = a.layout;
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t k = 0; k < s.cols; k += s.m) {
      const int64_t end = std::min(k + s.m, s.cols);
      int64_t kept = 0;
      for (int64_t c = k; c < end; ++c) {
        kept += a.mask[row * a.mask_row_stride + c * a.mask_col_stride] != 0;
      }
      if (kept <= s.n) continue;
      return Status::InvalidValue("nm_pack: row " + std::to_string(row) + ", columns " +
                                  std::to_string(k) + " to " + std::to_string(end - 1) +
                                  " must keep at most " + std::to_string(s.n) + " of " +
                                  std::to_string(s.m) + ", got " + std::to_string(kept));
    }
  }
  return Status::InvalidValue("nm_pack: mask must not change while it is read");
}

}  // namespace

Status NmPack(const NmPackArgs& a, const ParallelFor& parallel_for) {
  if (a.dtype != DType::kF32 && a.dtype != DType::kBF16 && a.dtype != DType::kF16) {
    return Status::InvalidType(
        std::string("nm_pack: dense must be float32, bfloat16 or float16, got ") + Name(a.dtype));
  }
  if (a.row_stride != 1 && a.col_stride != 1) {
    return Status::InvalidValue("nm_pack: one stride of dense must be 1");
  }
  if (a.mask != nullptr && a.mask_row_stride != 1 && a.mask_col_stride != 1) {
    return Status::InvalidValue("nm_pack: one stride of mask must be 1");
  }
  IsaMask isa = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&isa));
  const NmPackFn pack = SelectNmMaskKernels(isa).pack;
  auto* base = static_cast<uint8_t*>(a.structure);
  WriteNmHeader(a.layout, base);
  const NmPackJob job{a.dense,
                      a.row_stride,
                      a.col_stride,
                      a.dtype,
                      a.mask,
                      a.mask_row_stride,
                      a.mask_col_stride,
                      a.layout,
                      static_cast<uint8_t*>(a.values),
                      base + kNmHeaderBytes};
  std::atomic<bool> sound{true};
  ForEachRange(parallel_for, a.layout.panels, [&](int64_t begin, int64_t end) {
    if (!pack(job, begin, end)) sound.store(false);
  });
  return sound.load() ? Status::Ok() : TooMuch(a);
}

}  // namespace sparsekern
