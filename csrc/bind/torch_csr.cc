// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.csr_*: checks, views, allocation; the work is the core's.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <utility>

#include "bind/torch_args.h"
#include "bind/torch_errors.h"
#include "bind/torch_parallel.h"
#include "bind/torch_tensor.h"
#include "sparsekern/csr_spmm.h"

namespace sparsekern::bind {
namespace {

CsrStructure Structure(const char* op, const Tensor& structure) {
  CheckStructure(op, structure);
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
  SetValues(op, values, scale, w.structure.value_count(), rows, &w);
  return w;
}

Tensor CsrLinearOp(const Tensor& x, const Tensor& values, const Tensor& structure,
                   const MaybeTensor& scale, const MaybeTensor& bias, int64_t rows,
                   int64_t activation, bool int8_activations) {
  constexpr const char* kOp = "csr_linear";
  CheckCpu(kOp, "x", x);
  const CsrMatrix w = Matrix(kOp, values, structure, scale, rows);
  LinearArgs args;
  args.int8_x = int8_activations;
  const LinearCall call(kOp, x, bias, rows, w.structure.cols, activation, &args);
  ThrowIfError(CsrLinear(w, args, TorchParallelFor()));
  return call.y;
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
