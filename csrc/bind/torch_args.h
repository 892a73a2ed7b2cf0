// SPDX-License-Identifier: Apache-2.0
// Checks and views of operators' arguments: operator, argument, expected, got.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>

#include "bind/torch_errors.h"
#include "bind/torch_tensor.h"
#include "sparsekern/linear.h"

namespace sparsekern::bind {

using MaybeTensor = std::optional<Tensor>;

[[noreturn]] inline void Fail(Status status) {
  ThrowIfError(status);
  throw std::logic_error("sparsekern: failure without a message");
}

inline void CheckCpu(const char* op, const char* argument, const Tensor& t) {
  if (!t.is_cpu()) {
    Fail(Status::InvalidValue(std::string(op) + ": " + argument + " must be on the CPU like x"));
  }
}

inline void CheckVector(const char* op, const char* argument, const Tensor& t, int64_t n) {
  CheckCpu(op, argument, t);
  if (t.dim() != 1 || t.size(0) != n || !t.is_contiguous()) {
    Fail(Status::InvalidValue(std::string(op) + ": " + argument + " must be contiguous with " +
                              std::to_string(n) + " elements, got " + std::to_string(t.numel())));
  }
}

inline DType FloatType(const char* op, const char* argument, const Tensor& t) {
  DType dtype = DType::kI8;
  if (!DTypeOf(t.scalar_type(), &dtype) || dtype == DType::kI8) {
    Fail(Status::InvalidType(std::string(op) + ": " + argument +
                             " must be float32, bfloat16 or float16"));
  }
  return dtype;
}

inline void CheckStructure(const char* op, const Tensor& structure) {
  CheckCpu(op, "structure", structure);
  if (structure.scalar_type() != ScalarType::Byte || structure.dim() != 1 ||
      !structure.is_contiguous()) {
    Fail(Status::InvalidType(std::string(op) + ": structure must be a contiguous uint8 vector"));
  }
}

// Values and scale of a packed matrix.
template <typename Structure>
void SetValues(const char* op, const Tensor& values, const MaybeTensor& scale, int64_t value_count,
               int64_t rows, PackedMatrix<Structure>* w) {
  CheckVector(op, "values", values, value_count);
  if (!DTypeOf(values.scalar_type(), &w->dtype)) {
    Fail(Status::InvalidType(std::string(op) +
                             ": values must be float32, bfloat16, float16 or int8"));
  }
  w->values = values.const_data_ptr();
  if (!scale.has_value()) return;
  CheckVector(op, "scale", *scale, rows);
  if (scale->scalar_type() != ScalarType::Float) {
    Fail(Status::InvalidType(std::string(op) + ": scale must be float32"));
  }
  w->scale = static_cast<const float*>(scale->const_data_ptr());
}

inline Activation ActivationOf(const char* op, int64_t code) {
  if (code < 0 || code > 6) {
    Fail(Status::InvalidValue(std::string(op) + ": activation must be in [0, 6], got " +
                              std::to_string(code)));
  }
  return static_cast<Activation>(code);
}

// A bias as contiguous fp32. `keep` owns the copy when one had to be made.
inline const float* Bias(const char* op, const MaybeTensor& bias, int64_t rows,
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

// What a linear operator reads and writes: fills in LinearArgs, and owns the tensors that they
// point into.
class LinearCall {
 public:
  LinearCall(const char* op, const Tensor& x, const MaybeTensor& bias, int64_t rows, int64_t cols,
             int64_t activation, LinearArgs* args)
      : rows_of_x_(x), y(x) {
    const int64_t dims = x.dim();
    if (dims < 1 || dims > kMaxDims) {
      Fail(Status::InvalidValue(std::string(op) + ": x must have 1 to 16 dimensions, got " +
                                std::to_string(dims)));
    }
    if (x.size(dims - 1) != cols) {
      Fail(Status::InvalidValue(std::string(op) + ": x.shape[-1] must equal in_features (" +
                                std::to_string(cols) + "), got " +
                                std::to_string(x.size(dims - 1))));
    }
    args->dtype = FloatType(op, "x", x);
    args->epilogue.activation = ActivationOf(op, activation);
    args->epilogue.bias = Bias(op, bias, rows, &bias_);
    int64_t sizes[kMaxDims];
    args->x_rows = 1;
    for (int64_t d = 0; d + 1 < dims; ++d) args->x_rows *= sizes[d] = x.size(d);
    sizes[dims - 1] = rows;
    // A matrix of rows with a stride between them is taken as it is; anything else is made
    // contiguous.
    const bool strided = dims == 2 && x.stride(1) == 1 && x.stride(0) >= cols;
    if (!strided && !x.is_contiguous()) rows_of_x_ = torch::stable::contiguous(x);
    args->x_stride = strided ? x.stride(0) : cols;
    args->x = rows_of_x_.const_data_ptr();
    y = Empty(sizes, dims, args->dtype);
    args->y = y.mutable_data_ptr();
    args->y_stride = rows;
  }

 private:
  Tensor rows_of_x_;
  std::optional<Tensor> bias_;

 public:
  Tensor y;
};

}  // namespace sparsekern::bind
