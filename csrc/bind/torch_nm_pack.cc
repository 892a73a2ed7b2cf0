// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.nm_pack and nm_select_pack: dense weights into the nm format, by a mask or
// by magnitude, on the CPU, for training, where it happens in every step; the work is the core's.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "bind/torch_args.h"
#include "bind/torch_parallel.h"
#include "sparsekern/nm_mask.h"

namespace sparsekern::bind {
namespace {

// A matrix one of whose strides is 1.
Tensor Strided(const Tensor& t) {
  return t.stride(0) == 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t);
}

std::tuple<Tensor, Tensor> Pack(const char* op, const Tensor& w, const Tensor* mask, int64_t n,
                                int64_t m) {
  if (m > 32 || n > 32 || m < 0 || n < 0) {  // wider than the core's int; it checks the rest
    Fail(Status::InvalidValue(std::string(op) + ": n and m must be at most 32, got " +
                              std::to_string(n) + " and " + std::to_string(m)));
  }
  NmPackArgs args;
  args.dtype = FloatType(op, "w", w);
  ThrowIfError(PlanNm(w.size(0), w.size(1), static_cast<int>(n), static_cast<int>(m), args.dtype,
                      &args.layout));
  const Tensor dense = Strided(w);
  args.dense = dense.const_data_ptr();
  args.row_stride = dense.stride(0);
  args.col_stride = dense.stride(1);
  Tensor kept = dense;
  if (mask != nullptr) {
    kept = Strided(*mask);
    args.mask = static_cast<const uint8_t*>(kept.const_data_ptr());
    args.mask_row_stride = kept.stride(0);
    args.mask_col_stride = kept.stride(1);
  }
  Tensor values = Empty({args.layout.value_count()}, args.dtype);
  Tensor structure = torch::stable::new_empty(
      w, {static_cast<int64_t>(NmStructureBytes(args.layout))}, ScalarType::Byte);
  args.values = values.mutable_data_ptr();
  args.structure = structure.mutable_data_ptr();
  ThrowIfError(NmPack(args, TorchParallelFor()));
  return {values, structure};
}

std::tuple<Tensor, Tensor> NmPackOp(const Tensor& w, const Tensor& mask, int64_t n, int64_t m) {
  constexpr const char* kOp = "nm_pack";
  CheckCpu(kOp, "w", w);
  CheckCpu(kOp, "mask", mask);
  if (w.dim() != 2 || mask.dim() != 2 || w.size(0) != mask.size(0) || w.size(1) != mask.size(1)) {
    Fail(Status::InvalidValue("nm_pack: w and mask must be [rows, cols], both the same"));
  }
  if (mask.scalar_type() != ScalarType::Bool) {
    Fail(Status::InvalidType("nm_pack: mask must be bool"));
  }
  return Pack(kOp, w, &mask, n, m);
}

std::tuple<Tensor, Tensor> NmSelectPackOp(const Tensor& w, int64_t n, int64_t m) {
  constexpr const char* kOp = "nm_select_pack";
  CheckCpu(kOp, "w", w);
  if (w.dim() != 2) {
    Fail(Status::InvalidValue("nm_select_pack: w must be [rows, cols], got " +
                              std::to_string(w.dim()) + " dimensions"));
  }
  return Pack(kOp, w, nullptr, n, m);
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_FRAGMENT(sparsekern, m) {
  m.def("nm_pack(Tensor w, Tensor mask, int n, int m) -> (Tensor values, Tensor structure)");
  m.def("nm_select_pack(Tensor w, int n, int m) -> (Tensor values, Tensor structure)");
}

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("nm_pack", TORCH_BOX(&sparsekern::bind::NmPackOp));
  m.impl("nm_select_pack", TORCH_BOX(&sparsekern::bind::NmSelectPackOp));
}
