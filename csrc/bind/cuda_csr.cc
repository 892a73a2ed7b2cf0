// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of torch.ops.sparsekern.csr_*, in a library of their own.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "bind/cuda_args.h"
#include "ops/csr_spmm/cuda_sm80.h"

namespace sparsekern::bind {
namespace {

constexpr const char* kOp = "csr_linear";

void Require(bool condition, const std::string& message) {
  if (!condition) Fail(Status::InvalidValue(std::string(kOp) + ": " + message));
}

Tensor CsrLinearCuda(const Tensor& x, const Tensor& values, const Tensor& structure,
                     const MaybeTensor& scale, const MaybeTensor& bias, int64_t rows,
                     int64_t activation, bool int8_activations) {
  Require(!int8_activations, "int8_activations exist on the CPU only");
  Require(x.dim() >= 1 && x.dim() <= kMaxDims, "x must have 1 to 16 dimensions");
  Require(rows >= 1, "rows must be positive, got " + std::to_string(rows));
  CheckPart(kOp, "values", values, x);
  CheckPart(kOp, "structure", structure, x);
  Require(structure.scalar_type() == ScalarType::Byte && structure.numel() >= 64,
          "structure must be a uint8 vector of at least 64 bytes");
  cuda::CsrLinearArgs a = {};
  a.x_dtype = FloatType(kOp, "x", x);
  a.value_dtype = ValuesType(kOp, values);
  a.activation = ActivationOf(kOp, activation);
  Require((a.value_dtype == DType::kI8) == scale.has_value(),
          "scale must be given for int8 values and for no others");
  const Tensor dense = torch::stable::contiguous(x);
  std::optional<Tensor> scale_copy, bias_copy;
  a.scale = RowVector(kOp, "scale", scale, x, rows, &scale_copy);
  a.bias = RowVector(kOp, "bias", bias, x, rows, &bias_copy);
  const int64_t dims = x.dim();
  std::vector<int64_t> sizes(dims);
  a.x_rows = 1;
  for (int64_t d = 0; d + 1 < dims; ++d) a.x_rows *= sizes[d] = x.size(d);
  sizes[dims - 1] = rows;
  Tensor y = torch::stable::new_empty(x, sizes);
  if (a.x_rows == 0) return y;
  const OnDevice device(kOp, x);
  const int multiprocessors = device.Attribute(kOp, cudaDevAttrMultiProcessorCount);
  a.cols = x.size(dims - 1);
  a.rows = rows;
  a.panels = cuda::MaxPanels(rows);
  a.parts = cuda::ChooseParts(rows, a.cols, a.x_rows, multiprocessors);
  Tensor partial = torch::stable::new_empty(x, {a.parts, a.x_rows, rows}, ScalarType::Float);
  a.x = dense.const_data_ptr();
  a.values = values.const_data_ptr();
  a.structure = static_cast<const uint8_t*>(structure.const_data_ptr());
  a.y = y.mutable_data_ptr();
  a.partial = static_cast<float*>(partial.mutable_data_ptr());
  a.structure_bytes = structure.numel();
  a.value_count = values.numel();
  CheckLaunch(kOp, cuda::CsrLinear(a, device.Stream(kOp)));
  return y;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CUDA, m) {
  m.impl("csr_linear", TORCH_BOX(&sparsekern::bind::CsrLinearCuda));
}
