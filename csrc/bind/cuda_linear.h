// SPDX-License-Identifier: Apache-2.0
// What the CUDA operators of all families' linear layers do around their kernels: checks, views,
// allocation.
#pragma once

#include <string>
#include <vector>

#include "base/cuda/problem.h"
#include "bind/cuda_args.h"

namespace sparsekern::bind {

class CudaLinear {
 public:
  // Checks what does not depend on the family, and fills call->problem, call->activation, bias and,
  // where the family's is one of rows, scale.
  CudaLinear(const char* op, const Tensor& x, const Tensor& values, const Tensor& structure,
             const MaybeTensor& scale, const MaybeTensor& bias, int64_t rows, int64_t activation,
             cuda::LinearCall* call, bool scale_of_rows = true)
      : op_(Checked(op, x, values, structure)), device_(op, x), call_(call) {
    const int64_t dims = x.dim();
    if (dims < 1 || dims > kMaxDims) {
      Fail(Status::InvalidValue(op_ + ": x must have 1 to 16 dimensions, got " +
                                std::to_string(dims)));
    }
    cuda::LinearProblem& p = call->problem;
    p.x_dtype = FloatType(op, "x", x);
    p.value_dtype = ValuesType(op, values);
    p.rows = rows;
    p.cols = x.size(dims - 1);
    p.value_count = values.numel();
    p.structure_bytes = structure.numel();
    call->activation = ActivationOf(op, activation);
    if (scale_of_rows && (p.value_dtype == DType::kI8) != scale.has_value()) {
      Fail(Status::InvalidValue(op_ + ": scale must be given for int8 values and for no others"));
    }
    p.x_rows = 1;
    for (int64_t d = 0; d + 1 < dims; ++d) {
      sizes_.push_back(x.size(d));
      p.x_rows *= x.size(d);
    }
    sizes_.push_back(rows);
    const int major = device_.Attribute(op, cudaDevAttrComputeCapabilityMajor);
    if (major < 8) {
      const int minor = device_.Attribute(op, cudaDevAttrComputeCapabilityMinor);
      Fail(Status::Unimplemented(op_ +
                                 ": the CUDA device must have compute capability 8.0 or later, "
                                 "got " +
                                 std::to_string(major) + "." + std::to_string(minor)));
    }
    if (scale_of_rows) call->scale = RowVector(op, "scale", scale, x, rows, &scale_);
    call->bias = RowVector(op, "bias", bias, x, rows, &bias_);
  }

  cuda::DeviceLimits Limits() const {
    return {device_.Attribute(op_.c_str(), cudaDevAttrMultiProcessorCount),
            device_.Attribute(op_.c_str(), cudaDevAttrMaxSharedMemoryPerBlockOptin)};
  }

  // Whether the device has wgmma, which code for sm_90a alone may use: compute capability 9.0.
  bool Wgmma() const {
#if defined(SPARSEKERN_SM90A)
    return device_.Attribute(op_.c_str(), cudaDevAttrComputeCapabilityMajor) == 9 &&
           device_.Attribute(op_.c_str(), cudaDevAttrComputeCapabilityMinor) == 0;
#else
    return false;
#endif
  }

  [[noreturn]] void FailSizes(const char* format) const {
    const cuda::LinearProblem& p = call_->problem;
    Fail(Status::InvalidValue(op_ + ": values and structure must have the sizes of " + format +
                              " matrix of rows x x.shape[-1] (" + std::to_string(p.rows) + " x " +
                              std::to_string(p.cols) + "), got " + std::to_string(p.value_count) +
                              " values and " + std::to_string(p.structure_bytes) + " bytes"));
  }

  // Fills the call's pointers. x gets columns of zeros up to a multiple of `multiple`, and is
  // aligned to 16 bytes, where that is not 1; parts > 0: room for the sums of so many parts. The
  // result; without elements there is nothing to launch.
  Tensor Prepare(const Tensor& x, const Tensor& values, const Tensor& structure, int64_t multiple,
                 int64_t parts) {
    cuda::LinearCall& a = *call_;
    const cuda::LinearProblem& p = a.problem;
    Tensor y = torch::stable::new_empty(x, sizes_);
    if (p.x_rows == 0) return y;
    x_ = torch::stable::contiguous(x);
    a.x_stride = a.x_cols = p.cols;
    if (multiple > 1 && (p.cols % multiple != 0 || !Aligned(*x_))) {
      a.x_stride = a.x_cols = (p.cols + multiple - 1) / multiple * multiple;
      Tensor padded = torch::stable::new_empty(x, {p.x_rows, a.x_cols});
      CheckLaunch(op_.c_str(), cuda::PadRows(x_->const_data_ptr(), p.cols, p.x_rows, p.cols,
                                             padded.mutable_data_ptr(), a.x_cols,
                                             static_cast<int>(SizeOf(p.x_dtype)), Stream()));
      x_ = padded;
    }
    if (parts > 0) {
      partial_ = torch::stable::new_empty(x, {parts, p.x_rows, p.rows}, ScalarType::Float);
      a.partial = static_cast<float*>(partial_->mutable_data_ptr());
    }
    values_ = AlignedCopy(values);
    structure_ = AlignedCopy(structure);
    a.x = x_->const_data_ptr();
    a.values = values_->const_data_ptr();
    a.structure = static_cast<const uint8_t*>(structure_->const_data_ptr());
    a.y = y.mutable_data_ptr();
    return y;
  }

  void* Stream() const { return device_.Stream(op_.c_str()); }

 private:
  static const char* Checked(const char* op, const Tensor& x, const Tensor& values,
                             const Tensor& structure) {
    CheckPart(op, "values", values, x);
    CheckPart(op, "structure", structure, x);
    if (structure.scalar_type() != ScalarType::Byte) {
      Fail(Status::InvalidType(std::string(op) + ": structure must be a contiguous uint8 vector"));
    }
    return op;
  }
  static bool Aligned(const Tensor& t) {
    return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
  }
  // Kernels load 16 bytes at a time; a slice of a larger tensor may begin anywhere.
  static Tensor AlignedCopy(const Tensor& t) { return Aligned(t) ? t : torch::stable::clone(t); }

  std::string op_;
  OnDevice device_;
  cuda::LinearCall* call_;
  std::vector<int64_t> sizes_;
  std::optional<Tensor> scale_, bias_, x_, partial_, values_, structure_;
};

}  // namespace sparsekern::bind
