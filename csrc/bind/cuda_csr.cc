// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of torch.ops.sparsekern.csr_*, in a library of their own.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>

#include "bind/torch_errors.h"
#include "bind/torch_tensor.h"
#include "ops/csr_spmm/cuda_sm80.h"

namespace sparsekern::bind {
namespace {

using MaybeTensor = std::optional<Tensor>;

void Require(bool condition, const std::string& message) {
  if (!condition) ThrowIfError(Status::InvalidValue("csr_linear: " + message));
}

DType RequireDType(const Tensor& t, const char* argument) {
  DType dtype = DType::kI8;
  if (!DTypeOf(t.scalar_type(), &dtype)) {
    ThrowIfError(Status::InvalidType(std::string("csr_linear: ") + argument +
                                     " must be float32, bfloat16, float16 (or int8 values)"));
  }
  return dtype;
}

void RequireDevice(const Tensor& t, const Tensor& x, const char* argument) {
  Require(t.is_cuda() && t.get_device_index() == x.get_device_index() && t.is_contiguous(),
          std::string(argument) + " must be contiguous and on x's device");
}

// A per-row vector as fp32 on the device; `keep` owns the copy when one had to be made.
const float* RowVector(const MaybeTensor& t, const Tensor& x, const char* argument, int64_t rows,
                       std::optional<Tensor>* keep) {
  if (!t.has_value()) return nullptr;
  Require(t->dim() == 1 && t->size(0) == rows, std::string(argument) + " must have rows (" +
                                                   std::to_string(rows) + ") elements, got " +
                                                   std::to_string(t->numel()));
  *keep = torch::stable::contiguous(torch::stable::to(*t, ScalarType::Float));
  RequireDevice(**keep, x, argument);
  return static_cast<const float*>((*keep)->const_data_ptr());
}

Tensor CsrLinearCuda(const Tensor& x, const Tensor& values, const Tensor& structure,
                     const MaybeTensor& scale, const MaybeTensor& bias, int64_t rows,
                     int64_t activation, bool int8_activations) {
  Require(!int8_activations, "int8_activations exist on the CPU only");
  Require(x.dim() >= 1 && x.dim() <= kMaxDims, "x must have 1 to 16 dimensions");
  Require(rows >= 1 && activation >= 0 && activation <= 6,
          "rows must be positive and activation in [0, 6]");
  RequireDevice(values, x, "values");
  RequireDevice(structure, x, "structure");
  Require(structure.scalar_type() == ScalarType::Byte && structure.dim() == 1 &&
              structure.numel() >= 64,
          "structure must be a uint8 vector of at least 64 bytes");
  cuda::CsrLinearArgs a = {};
  a.x_dtype = RequireDType(x, "x");
  a.value_dtype = RequireDType(values, "values");
  if (a.x_dtype == DType::kI8) {
    ThrowIfError(
        Status::InvalidType("csr_linear: x must be float32, bfloat16 or float16, got int8"));
  }
  Require((a.value_dtype == DType::kI8) == scale.has_value(),
          "scale must be given for int8 values and for no others");
  const Tensor dense = torch::stable::contiguous(x);
  std::optional<Tensor> scale_copy, bias_copy;
  a.scale = RowVector(scale, x, "scale", rows, &scale_copy);
  a.bias = RowVector(bias, x, "bias", rows, &bias_copy);
  const int64_t dims = x.dim();
  std::vector<int64_t> sizes(dims);
  a.x_rows = 1;
  for (int64_t d = 0; d + 1 < dims; ++d) a.x_rows *= sizes[d] = x.size(d);
  sizes[dims - 1] = rows;
  Tensor y = torch::stable::new_empty(x, sizes);
  if (a.x_rows == 0) return y;
  const int device = static_cast<int>(x.get_device_index());
  int multiprocessors = 0;
  Require(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) ==
              cudaSuccess,
          "the CUDA device does not answer");
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
  a.activation = static_cast<Activation>(activation);
  void* stream = nullptr;
  aoti_torch_get_current_cuda_stream(device, &stream);
  const char* error = cuda::CsrLinear(a, stream);
  if (error != nullptr) ThrowIfError(Status::Internal(std::string("csr_linear: CUDA: ") + error));
  return y;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CUDA, m) {
  m.impl("csr_linear", TORCH_BOX(&sparsekern::bind::CsrLinearCuda));
}
