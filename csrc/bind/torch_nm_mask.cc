// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.nm_mask on the CPU: checks, views, allocation; the work is the core's. Other
// devices have an implementation in torch (python/sparsekern/_nm_mask.py).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "bind/torch_errors.h"
#include "bind/torch_parallel.h"
#include "bind/torch_tensor.h"
#include "sparsekern/nm_mask.h"

namespace sparsekern::bind {
namespace {

Tensor NmMaskOp(const Tensor& score, int64_t n, int64_t m, bool magnitude) {
  NmMaskArgs args;
  if (!DTypeOf(score.scalar_type(), &args.dtype) || args.dtype == DType::kI8) {
    ThrowIfError(Status::InvalidType("nm_mask: score must be float32, bfloat16 or float16"));
  }
  if (score.dim() != 2) {
    ThrowIfError(Status::InvalidValue("nm_mask: score must be [rows, cols], got " +
                                      std::to_string(score.dim()) + " dimensions"));
  }
  // A transposed matrix is taken as it lies there, and so is its mask made.
  args.transposed =
      !score.is_contiguous() && score.stride(0) == 1 && score.stride(1) == score.size(0);
  const bool as_it_is = args.transposed || score.is_contiguous();
  const Tensor rows = as_it_is ? score : torch::stable::contiguous(score);
  args.score = rows.const_data_ptr();
  args.rows = score.size(0);
  args.cols = score.size(1);
  args.n = n;
  args.m = m;
  args.magnitude = magnitude;
  Tensor mask =
      args.transposed
          ? torch::stable::transpose(
                torch::stable::new_empty(rows, {args.cols, args.rows}, ScalarType::Bool), 0, 1)
          : torch::stable::new_empty(rows, {args.rows, args.cols}, ScalarType::Bool);
  args.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
  ThrowIfError(NmMask(args, TorchParallelFor()));
  return mask;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_FRAGMENT(sparsekern, m) {
  m.def("nm_mask(Tensor score, int n, int m, bool magnitude=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("nm_mask", TORCH_BOX(&sparsekern::bind::NmMaskOp));
}
