// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.nm_linear for CUDA: checks, the plan, allocation; the work is in
// ops/nm_linear.
#include "ops/nm_linear/cuda_nm.h"

#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "bind/cuda_args.h"

namespace sparsekern::bind {
namespace {

constexpr const char* kOp = "nm_linear";

bool Aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0; }

// Kernels load 16 bytes at a time; a slice of a larger tensor may begin anywhere.
Tensor AlignedCopy(const Tensor& t) { return Aligned(t) ? t : torch::stable::clone(t); }

Tensor NmLinearCuda(const Tensor& x, const Tensor& values, const Tensor& structure,
                    const MaybeTensor& scale, const MaybeTensor& bias, int64_t rows,
                    int64_t activation) {
  CheckPart(kOp, "values", values, x);
  CheckPart(kOp, "structure", structure, x);
  if (structure.scalar_type() != ScalarType::Byte) {
    Fail(Status::InvalidType("nm_linear: structure must be a contiguous uint8 vector"));
  }
  const int64_t dims = x.dim();
  if (dims < 1 || dims > kMaxDims) {
    Fail(Status::InvalidValue("nm_linear: x must have 1 to 16 dimensions, got " +
                              std::to_string(dims)));
  }
  cuda::NmCudaArgs a = {};
  cuda::NmProblem& p = a.problem;
  p.x_dtype = FloatType(kOp, "x", x);
  p.value_dtype = ValuesType(kOp, values);
  p.rows = rows;
  p.cols = x.size(dims - 1);
  p.value_count = values.numel();
  p.structure_bytes = structure.numel();
  a.activation = ActivationOf(kOp, activation);
  if ((p.value_dtype == DType::kI8) != scale.has_value()) {
    Fail(Status::InvalidValue("nm_linear: scale must be given for int8 values and for no others"));
  }
  std::vector<int64_t> sizes(static_cast<size_t>(dims));
  p.x_rows = 1;
  for (int64_t d = 0; d + 1 < dims; ++d) p.x_rows *= sizes[static_cast<size_t>(d)] = x.size(d);
  sizes.back() = rows;

  const OnDevice device(kOp, x);
  const int major = device.Attribute(kOp, cudaDevAttrComputeCapabilityMajor);
  if (major < 8) {
    Fail(Status::Unimplemented(
        "nm_linear: the CUDA device must have compute capability 8.0 or "
        "later, got " +
        std::to_string(major) + "." +
        std::to_string(device.Attribute(kOp, cudaDevAttrComputeCapabilityMinor))));
  }
  a.plan.possible = rows >= 1 && p.cols >= 1;
  if (a.plan.possible) {
    a.plan =
        cuda::PlanNmLinear(p, {device.Attribute(kOp, cudaDevAttrMultiProcessorCount),
                               device.Attribute(kOp, cudaDevAttrMaxSharedMemoryPerBlockOptin)});
  }
  if (!a.plan.possible) {
    Fail(Status::InvalidValue(
        "nm_linear: values and structure must have the sizes of an N:M matrix of rows x "
        "x.shape[-1] (" +
        std::to_string(rows) + " x " + std::to_string(p.cols) + "), got " +
        std::to_string(p.value_count) + " values and " + std::to_string(p.structure_bytes) +
        " bytes"));
  }
  std::optional<Tensor> scale_copy, bias_copy;
  a.scale = RowVector(kOp, "scale", scale, x, rows, &scale_copy);
  a.bias = RowVector(kOp, "bias", bias, x, rows, &bias_copy);
  Tensor y = torch::stable::new_empty(x, sizes);
  if (p.x_rows == 0) return y;

  void* stream = device.Stream(kOp);
  Tensor dense = torch::stable::contiguous(x);
  a.x_stride = a.x_cols = p.cols;
  const bool tiles =
      a.plan.kernel == cuda::NmKernel::kSparseMma || a.plan.kernel == cuda::NmKernel::kDenseMma;
  if (tiles && (p.cols % 8 != 0 || !Aligned(dense))) {
    a.x_stride = a.x_cols = (p.cols + 7) / 8 * 8;
    Tensor padded = torch::stable::new_empty(x, {p.x_rows, a.x_cols});
    CheckLaunch(kOp, cuda::PadRows(dense.const_data_ptr(), p.cols, p.x_rows, p.cols,
                                   padded.mutable_data_ptr(), a.x_cols, stream));
    dense = padded;
  }
  std::optional<Tensor> partial;
  if (a.plan.kernel == cuda::NmKernel::kDecode) {
    partial = torch::stable::new_empty(x, {a.plan.parts, p.x_rows, rows}, ScalarType::Float);
    a.partial = static_cast<float*>(partial->mutable_data_ptr());
  }
  const Tensor aligned_values = AlignedCopy(values), aligned_structure = AlignedCopy(structure);
  a.x = dense.const_data_ptr();
  a.values = aligned_values.const_data_ptr();
  a.structure = static_cast<const uint8_t*>(aligned_structure.const_data_ptr());
  a.y = y.mutable_data_ptr();
  CheckLaunch(kOp, cuda::NmLinear(a, stream));
  return y;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CUDA, m) {
  m.impl("nm_linear", TORCH_BOX(&sparsekern::bind::NmLinearCuda));
}
