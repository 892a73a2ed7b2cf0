// SPDX-License-Identifier: Apache-2.0
// y = activation(x W^T + bias) for a group-quantized sparse matrix W: checks, and which driver.
#include <cstring>

#include "ops/gqs_linear/drivers.h"

namespace sparsekern {

const GqsKernels& SelectGqsKernels(IsaMask mask) {
#define SPARSEKERN_GQS_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return kGqsKernels_##isa_suffix;
#include "ops/gqs_linear/kernels.inc"
#undef SPARSEKERN_GQS_KERNELS
  return kGqsKernels_scalar;
}

const GqsInt8Kernels* SelectGqsInt8Kernels(IsaMask mask) {
#define SPARSEKERN_GQS_INT8_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return &kGqsInt8Kernels_##isa_suffix;
#include "ops/gqs_linear/int8_kernels.inc"
#undef SPARSEKERN_GQS_INT8_KERNELS
  static_cast<void>(mask);
  return nullptr;
}

std::string GqsLinearKernelName(const GqsMatrix& w, int64_t x_rows, IsaMask mask, bool int8_x) {
  const GqsKernels& kernels = SelectGqsKernels(mask);
  const std::string name =
      "gqs_linear_w" + std::to_string(w.structure.bits) + "g" + std::to_string(w.structure.group);
  if (x_rows > kernels.max_decode_rows) return name + "_batch__" + kernels.tiles.isa_name;
  const GqsInt8Kernels* int8 =
      UsesGqsInt8(w.structure, x_rows, int8_x) ? SelectGqsInt8Kernels(mask) : nullptr;
  if (int8 != nullptr) return name + "_dot__" + int8->isa_name;
  return name + "_decode__" + kernels.tiles.isa_name;
}

Status GqsLinear(const GqsMatrix& w, const LinearArgs& args, const ParallelFor& parallel_for) {
  const GqsStructure& s = w.structure;
  SPARSEKERN_RETURN_IF_ERROR(CheckLinear(kGqsOp, args, s.rows, s.cols));
  if (!IsValid(w.kind)) return Status::InvalidType("gqs_linear: scale has an unknown dtype");
  if (s.row_scale != (w.kind == GqsScale::kU8)) {
    return Status::InvalidType(
        "gqs_linear: scale must be 8 bits where rows have a factor, and only there");
  }
  if (args.x_rows == 0) return Status::Ok();
  IsaMask mask = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&mask));
  const Scratch row_scale(s.row_scale ? s.rows : 0);  // aligned
  if (row_scale.data() == nullptr) return OutOfScratch(kGqsOp);
  if (s.row_scale) {
    std::memcpy(row_scale.data(), s.row_scale_bytes, 4 * static_cast<size_t>(s.rows));
  }
  const float* factors = s.row_scale ? row_scale.data() : nullptr;
  const GqsKernels& kernels = SelectGqsKernels(mask);
  if (args.x_rows > kernels.max_decode_rows)
    return GqsBatch(kernels, w, args, factors, parallel_for);
  return GqsDecode(kernels, SelectGqsInt8Kernels(mask), w, args, factors, parallel_for);
}

}  // namespace sparsekern
