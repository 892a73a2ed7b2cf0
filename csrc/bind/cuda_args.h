// SPDX-License-Identifier: Apache-2.0
// Checks and views of the CUDA operators' arguments: operator, argument, expected, got. What the
// device's memory holds is not looked at: that would wait for the device.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>

#include "bind/torch_args.h"

namespace sparsekern::bind {

inline std::string DeviceName(const Tensor& t) {
  return t.is_cuda()  ? "cuda:" + std::to_string(t.get_device_index())
         : t.is_cpu() ? "cpu"
                      : "another device";
}

inline void CheckOnDevice(const char* op, const char* argument, const Tensor& t, const Tensor& x) {
  if (!t.is_cuda() || t.get_device_index() != x.get_device_index()) {
    Fail(Status::InvalidValue(std::string(op) + ": " + argument + " must be on x's device (" +
                              DeviceName(x) + "), got " + DeviceName(t)));
  }
}

// A contiguous vector of the packed weight.
inline void CheckPart(const char* op, const char* argument, const Tensor& t, const Tensor& x) {
  CheckOnDevice(op, argument, t, x);
  if (t.dim() != 1 || !t.is_contiguous()) {
    Fail(Status::InvalidValue(std::string(op) + ": " + argument +
                              " must be a contiguous vector, got " + std::to_string(t.dim()) +
                              " dimensions"));
  }
}

inline DType ValuesType(const char* op, const Tensor& values) {
  DType dtype = DType::kI8;
  if (!DTypeOf(values.scalar_type(), &dtype)) {
    Fail(Status::InvalidType(std::string(op) +
                             ": values must be float32, bfloat16, float16 or int8"));
  }
  return dtype;
}

// A vector of `rows` elements as fp32 on the device; `keep` owns the copy when one had to be made.
inline const float* RowVector(const char* op, const char* argument, const MaybeTensor& t,
                              const Tensor& x, int64_t rows, std::optional<Tensor>* keep) {
  if (!t.has_value()) return nullptr;
  CheckOnDevice(op, argument, *t, x);
  if (t->dim() != 1 || t->size(0) != rows) {
    Fail(Status::InvalidValue(std::string(op) + ": " + argument + " must have rows (" +
                              std::to_string(rows) + ") elements, got " +
                              std::to_string(t->numel())));
  }
  FloatType(op, argument, *t);
  *keep = torch::stable::contiguous(torch::stable::to(*t, ScalarType::Float));
  return static_cast<const float*>((*keep)->const_data_ptr());
}

// Makes a tensor's device the current one for as long as it lives: launches go there.
class OnDevice {
 public:
  OnDevice(const char* op, const Tensor& x) : device_(static_cast<int>(x.get_device_index())) {
    Check(op, cudaGetDevice(&before_));
    if (before_ != device_) Check(op, cudaSetDevice(device_));
  }
  ~OnDevice() {
    if (before_ != device_) (void)cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  int Attribute(const char* op, cudaDeviceAttr attribute) const {
    int value = 0;
    Check(op, cudaDeviceGetAttribute(&value, attribute, device_));
    return value;
  }
  // torch's current stream there, a cudaStream_t.
  void* Stream(const char* op) const {
    void* stream = nullptr;
    if (aoti_torch_get_current_cuda_stream(device_, &stream) != 0) {
      Fail(Status::Internal(std::string(op) + ": torch gave no CUDA stream"));
    }
    return stream;
  }

 private:
  static void Check(const char* op, cudaError_t error) {
    if (error != cudaSuccess) {
      Fail(Status::Internal(std::string(op) + ": CUDA: " + cudaGetErrorString(error)));
    }
  }

  int before_ = 0;
  int device_;
};

// What a kernel's launch returned.
inline void CheckLaunch(const char* op, const char* error) {
  if (error != nullptr) Fail(Status::Internal(std::string(op) + ": CUDA: " + error));
}

}  // namespace sparsekern::bind
