// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.nm_pack: dense weights and a mask into the nm format, on the CPU, for
// training, where it happens in every step; the work is the core's.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "bind/torch_args.h"
#include "bind/torch_parallel.h"
#include "sparsekern/nm.h"

namespace sparsekern::bind {
namespace {

std::tuple<Tensor, Tensor> NmPackOp(const Tensor& w, const Tensor& mask, int64_t n, int64_t m) {
  constexpr const char* kOp = "nm_pack";
  CheckCpu(kOp, "w", w);
  CheckCpu(kOp, "mask", mask);
  const DType dtype = FloatType(kOp, "w", w);
  if (w.dim() != 2 || mask.dim() != 2 || w.size(0) != mask.size(0) || w.size(1) != mask.size(1)) {
    Fail(Status::InvalidValue("nm_pack: w and mask must be [rows, cols], both the same"));
  }
  if (mask.scalar_type() != ScalarType::Bool) {
    Fail(Status::InvalidType("nm_pack: mask must be bool"));
  }
  if (m > 32 || n > 32 || m < 0 || n < 0) {  // wider than the core's int; it checks the rest
    Fail(Status::InvalidValue("nm_pack: n and m must be at most 32, got " + std::to_string(n) +
                              " and " + std::to_string(m)));
  }
  const Tensor kept = mask.is_contiguous() ? mask : torch::stable::contiguous(mask);
  const ParallelFor parallel_for = TorchParallelFor();
  NmPacker packer;
  ThrowIfError(packer.Plan(NmDense{w.const_data_ptr(), w.stride(0), w.stride(1)}, dtype, w.size(0),
                           w.size(1), static_cast<int>(n), static_cast<int>(m),
                           static_cast<const uint8_t*>(kept.const_data_ptr()), parallel_for));
  Tensor values = Empty({packer.value_count()}, dtype);
  Tensor structure = torch::stable::new_empty(w, {static_cast<int64_t>(packer.structure_bytes())},
                                              ScalarType::Byte);
  packer.Fill(values.mutable_data_ptr(), structure.mutable_data_ptr(), parallel_for);
  return {values, structure};
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_FRAGMENT(sparsekern, m) {
  m.def("nm_pack(Tensor w, Tensor mask, int n, int m) -> (Tensor values, Tensor structure)");
}

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("nm_pack", TORCH_BOX(&sparsekern::bind::NmPackOp));
}
