// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.csr_*: checks, views, allocation; the work is the core's.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <utility>

#include "bind/torch_errors.h"
#include "bind/torch_parallel.h"
#include "bind/torch_tensor.h"
#include "sparsekern/csr_spmm.h"

namespace sparsekern::bind {
namespace {

using MaybeTensor = std::optional<Tensor>;

[[noreturn]] void Fail(Status status) {
  ThrowIfError(status);
  throw std::logic_error("sparsekern: failure without a message");
}

void CheckCpu(const char* op, const char* argument, const Tensor& t) {
  if (!t.is_cpu()) {
    Fail(Status::InvalidValue(std::string(op) + ": " + argument + " must be on the CPU like x"));
  }
}

void CheckVector(const char* op, const char* argument, const Tensor& t, int64_t n) {
  CheckCpu(op, argument, t);
  if (t.dim() != 1 || t.size(0) != n || !t.is_contiguous()) {
    Fail(Status::InvalidValue(std::string(op) + ": " + argument + " must be contiguous with " +
                              std::to_string(n) + " elements, got " + std::to_string(t.numel())));
  }
}

DType FloatType(const char* op, const char* argument, const Tensor& t) {
  DType dtype = DType::kI8;
  if (!DTypeOf(t.scalar_type(), &dtype) || dtype == DType::kI8) {
    Fail(Status::InvalidType(std::string(op) + ": " + argument +
                             " must be float32, bfloat16 or float16"));
  }
  return dtype;
}

CsrStructure Structure(const char* op, const Tensor& structure) {
  CheckCpu(op, "structure", structure);
  if (structure.scalar_type() != ScalarType::Byte || structure.dim() != 1 ||
      !structure.is_contiguous()) {
    Fail(Status::InvalidType(std::string(op) + ": structure must be a contiguous uint8 vector"));
  }
  CsrStructure parsed;
  ThrowIfError(ParseCsrStructure(structure.const_data_ptr(), static_cast<size_t>(structure.numel()),
                                 op, &parsed));
  return parsed;
}

CsrMatrix Matrix(const char* op, const Tensor& values, const Tensor& structure,
                 const MaybeTensor& scale, int64_t rows) {
  CsrMatrix w;
  w.structure = Structure(op, structure);
  if (w.structure.rows != rows) {
    Fail(Status::InvalidValue(std::string(op) + ": rows must equal the structure's (" +
                              std::to_string(w.structure.rows) + "), got " + std::to_string(rows)));
  }
  CheckVector(op, "values", values, w.structure.value_count());
  if (!DTypeOf(values.scalar_type(), &w.dtype)) {
    Fail(Status::InvalidType(std::string(op) +
                             ": values must be float32, bfloat16, float16 or int8"));
  }
  w.values = values.const_data_ptr();
  if (scale.has_value()) {
    CheckVector(op, "scale", *scale, rows);
    if (scale->scalar_type() != ScalarType::Float) {
      Fail(Status::InvalidType(std::string(op) + ": scale must be float32"));
    }
    w.scale = static_cast<const float*>(scale->const_data_ptr());
  }
  return w;
}

Activation ActivationOf(const char* op, int64_t code) {
  if (code < 0 || code > 6) {
    Fail(Status::InvalidValue(std::string(op) + ": activation must be in [0, 6], got " +
                              std::to_string(code)));
  }
  return static_cast<Activation>(code);
}

// A bias as contiguous fp32. `keep` owns the copy when one had to be made.
const float* Bias(const char* op, const MaybeTensor& bias, int64_t rows,
                  std::optional<Tensor>* keep) {
  if (!bias.has_value()) return nullptr;
  CheckCpu(op, "bias", *bias);
  if (bias->dim() != 1 || bias->size(0) != rows) {
    Fail(Status::InvalidValue(std::string(op) + ": bias must have rows (" + std::to_string(rows) +
                              ") elements, got " + std::to_string(bias->numel())));
  }
  FloatType(op, "bias", *bias);
  if (bias->scalar_type() == ScalarType::Float && bias->is_contiguous()) {
    return static_cast<const float*>(bias->const_data_ptr());
  }
  *keep = torch::stable::contiguous(torch::stable::to(*bias, ScalarType::Float));
  return static_cast<const float*>((*keep)->const_data_ptr());
}

Tensor CsrLinearOp(const Tensor& x, const Tensor& values, const Tensor& structure,
                   const MaybeTensor& scale, const MaybeTensor& bias, int64_t rows,
                   int64_t activation, bool int8_activations) {
  constexpr const char* kOp = "csr_linear";
  CheckCpu(kOp, "x", x);
  const CsrMatrix w = Matrix(kOp, values, structure, scale, rows);
  const int64_t dims = x.dim();
  if (dims < 1 || dims > kMaxDims) {
    Fail(Status::InvalidValue("csr_linear: x must have 1 to 16 dimensions, got " +
                              std::to_string(dims)));
  }
  if (x.size(dims - 1) != w.structure.cols) {
    Fail(Status::InvalidValue("csr_linear: x.shape[-1] must equal in_features (" +
                              std::to_string(w.structure.cols) + "), got " +
                              std::to_string(x.size(dims - 1))));
  }
  CsrLinearArgs args;
  args.dtype = FloatType(kOp, "x", x);
  args.epilogue.activation = ActivationOf(kOp, activation);
  args.int8_x = int8_activations;
  std::optional<Tensor> bias_copy;
  args.epilogue.bias = Bias(kOp, bias, rows, &bias_copy);
  int64_t sizes[kMaxDims];
  args.x_rows = 1;
  for (int64_t d = 0; d + 1 < dims; ++d) args.x_rows *= sizes[d] = x.size(d);
  sizes[dims - 1] = rows;
  // A matrix of rows with a stride between them is taken as it is; anything else is made
  // contiguous.
  const bool strided = dims == 2 && x.stride(1) == 1 && x.stride(0) >= w.structure.cols;
  const Tensor rows_of_x = strided || x.is_contiguous() ? x : torch::stable::contiguous(x);
  args.x_stride = strided ? x.stride(0) : w.structure.cols;
  args.x = rows_of_x.const_data_ptr();
  Tensor y = Empty(sizes, dims, args.dtype);
  args.y = y.mutable_data_ptr();
  args.y_stride = rows;
  ThrowIfError(CsrLinear(w, args, TorchParallelFor()));
  return y;
}

Tensor CsrConv2dOp(const Tensor& x, const Tensor& values, const Tensor& structure,
                   const MaybeTensor& scale, const MaybeTensor& bias, int64_t rows, int64_t stride,
                   int64_t activation, bool int8_activations) {
  constexpr const char* kOp = "csr_conv2d";
  CheckCpu(kOp, "x", x);
  const CsrMatrix w = Matrix(kOp, values, structure, scale, rows);
  if (x.dim() != 4) {
    Fail(Status::InvalidValue(
        "csr_conv2d: x must have 4 dimensions (batch, channels, height, width), got " +
        std::to_string(x.dim())));
  }
  if (x.size(1) != w.structure.cols) {
    Fail(Status::InvalidValue("csr_conv2d: x.shape[1] must equal in_channels (" +
                              std::to_string(w.structure.cols) + "), got " +
                              std::to_string(x.size(1))));
  }
  if (stride < 1) {
    Fail(Status::InvalidValue("csr_conv2d: stride must be at least 1, got " +
                              std::to_string(stride)));
  }
  CsrConv2dArgs args;
  args.dtype = FloatType(kOp, "x", x);
  args.epilogue.activation = ActivationOf(kOp, activation);
  args.int8_x = int8_activations;
  std::optional<Tensor> bias_copy;
  args.epilogue.bias = Bias(kOp, bias, rows, &bias_copy);
  const Tensor nchw = x.is_contiguous() ? x : torch::stable::contiguous(x);
  args.x = nchw.const_data_ptr();
  args.batch = x.size(0);
  args.height = x.size(2);
  args.width = x.size(3);
  args.stride = stride;
  Tensor y = Empty(
      {args.batch, rows, (args.height + stride - 1) / stride, (args.width + stride - 1) / stride},
      args.dtype);
  args.y = y.mutable_data_ptr();
  ThrowIfError(CsrConv2d(w, args, TorchParallelFor()));
  return y;
}

Tensor CsrSddmmOp(const Tensor& grad, const Tensor& x, const Tensor& structure, int64_t numel) {
  constexpr const char* kOp = "csr_sddmm";
  CheckCpu(kOp, "grad", grad);
  CheckCpu(kOp, "x", x);
  const CsrStructure s = Structure(kOp, structure);
  if (grad.dim() != 2 || x.dim() != 2 || grad.size(0) != x.size(0) || grad.size(1) != s.rows ||
      x.size(1) != s.cols) {
    Fail(Status::InvalidValue("csr_sddmm: grad and x must be [m, " + std::to_string(s.rows) +
                              "] and [m, " + std::to_string(s.cols) + "]"));
  }
  if (numel != s.value_count()) {
    Fail(Status::InvalidValue("csr_sddmm: numel must be that of values (" +
                              std::to_string(s.value_count()) + "), got " + std::to_string(numel)));
  }
  CsrSddmmArgs args;
  args.dtype = FloatType(kOp, "x", x);
  if (FloatType(kOp, "grad", grad) != args.dtype) {
    Fail(Status::InvalidType("csr_sddmm: grad and x must have one dtype"));
  }
  const Tensor grad_rows = grad.is_contiguous() ? grad : torch::stable::contiguous(grad);
  const Tensor x_rows = x.is_contiguous() ? x : torch::stable::contiguous(x);
  args.grad = grad_rows.const_data_ptr();
  args.x = x_rows.const_data_ptr();
  args.x_rows = x.size(0);
  Tensor values_grad = Empty({s.value_count()}, DType::kF32);
  args.values_grad = static_cast<float*>(values_grad.mutable_data_ptr());
  ThrowIfError(CsrSddmm(s, args, TorchParallelFor()));
  return values_grad;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_FRAGMENT(sparsekern, m) {
  m.def(
      "csr_linear(Tensor x, Tensor values, Tensor structure, Tensor? scale, Tensor? bias, int "
      "rows, "
      "int activation=0, bool int8_activations=False) -> Tensor");
  m.def(
      "csr_conv2d(Tensor x, Tensor values, Tensor structure, Tensor? scale, Tensor? bias, int "
      "rows, "
      "int stride=1, int activation=0, bool int8_activations=False) -> Tensor");
  m.def("csr_sddmm(Tensor grad, Tensor x, Tensor structure, int numel) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_linear", TORCH_BOX(&sparsekern::bind::CsrLinearOp));
  m.impl("csr_conv2d", TORCH_BOX(&sparsekern::bind::CsrConv2dOp));
  m.impl("csr_sddmm", TORCH_BOX(&sparsekern::bind::CsrSddmmOp));
}
