// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.nm_mask for CUDA: checks and allocation; the work is in ops/nm_mask.
#include <torch/csrc/stable/library.h>

#include <string>

#include "bind/cuda_args.h"
#include "ops/nm_mask/cuda_mask.h"

namespace sparsekern::bind {
namespace {

Tensor NmMaskCuda(const Tensor& score, int64_t n, int64_t m, bool magnitude) {
  constexpr const char* kOp = "nm_mask";
  NmMaskArgs args;
  args.dtype = FloatType(kOp, "score", score);
  if (score.dim() != 2) {
    Fail(Status::InvalidValue("nm_mask: score must be [rows, cols], got " +
                              std::to_string(score.dim()) + " dimensions"));
  }
  args.n = n;
  args.m = m;
  args.magnitude = magnitude;
  ThrowIfError(NmMask(args, Serial()));  // of no rows: only the arguments are checked
  args.rows = score.size(0);
  args.cols = score.size(1);
  const Tensor rows = torch::stable::contiguous(score);
  Tensor mask = torch::stable::new_empty(rows, {args.rows, args.cols}, ScalarType::Bool);
  if (args.rows == 0 || args.cols == 0) return mask;
  args.score = rows.const_data_ptr();
  args.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
  const OnDevice device(kOp, score);
  CheckLaunch(kOp, cuda::NmMask(args, device.Stream(kOp)));
  return mask;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CUDA, m) {
  m.impl("nm_mask", TORCH_BOX(&sparsekern::bind::NmMaskCuda));
}
