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

std::string GqsLinearKernelName(const GqsMatrix& w, int64_t x_rows, IsaMask mask) {
  const GqsKernels& kernels = SelectGqsKernels(mask);
  return "gqs_linear_w" + std::to_string(w.structure.bits) + "g" +
         std::to_string(w.structure.group) +
         (x_rows <= kernels.max_decode_rows ? "_decode__" : "_batch__") + kernels.tiles.isa_name;
}

Status GqsLinear(const GqsMatrix& w, const LinearArgs& args, const ParallelFor& parallel_for) {
  const GqsStructure& s = w.structure;
  SPARSEKERN_RETURN_IF_ERROR(CheckLinear(kGqsOp, args, s.rows, s.cols));
  if (!IsValid(w.kind)) return Status::InvalidType("gqs_linear: scale has an unknown dtype");
  if (s.row_scale != (w.kind == GqsScale::kU8)) {
    return Status::InvalidType(
        "gqs_linear: scale must be 8 bits where rows have a factor, and only there");
  }
  if (args.int8_x) return Status::InvalidValue("gqs_linear: there is no product with int8_x");
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
  return args.x_rows <= kernels.max_decode_rows ? GqsDecode(kernels, w, args, factors, parallel_for)
                                                : GqsBatch(kernels, w, args, factors, parallel_for);
}

}  // namespace sparsekern
