// SPDX-License-Identifier: Apache-2.0
// The few things about torch's tensors that every operator needs.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "bind/torch_errors.h"
#include "sparsekern/dtype.h"
#include "sparsekern/status.h"

namespace sparsekern::bind {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxDims = 16;

// The core's name of torch's `type`; false when the core has none.
inline bool DTypeOf(ScalarType type, DType* dtype) {
  switch (type) {
    case ScalarType::Float: *dtype = DType::kF32; return true;
    case ScalarType::BFloat16: *dtype = DType::kBF16; return true;
    case ScalarType::Half: *dtype = DType::kF16; return true;
    case ScalarType::Char: *dtype = DType::kI8; return true;
    default: return false;
  }
}

inline int32_t TorchCode(DType dtype) {
  switch (dtype) {
    case DType::kF32: return aoti_torch_dtype_float32();
    case DType::kBF16: return aoti_torch_dtype_bfloat16();
    case DType::kF16: return aoti_torch_dtype_float16();
    case DType::kI8: return aoti_torch_dtype_int8();
  }
  return aoti_torch_dtype_float32();
}

// A new contiguous CPU tensor, not initialized. Goes to the allocator directly:
// torch::stable::empty takes the dispatcher and costs 2 us more, half of a small layer.
inline Tensor Empty(const int64_t* sizes, int64_t dims, DType dtype) {
  if (dims > kMaxDims) {
    ThrowIfError(Status::InvalidValue("tensor: must have at most " + std::to_string(kMaxDims) +
                                      " dimensions, got " + std::to_string(dims)));
  }
  int64_t strides[kMaxDims];
  int64_t stride = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  AtenTensorHandle handle = nullptr;
  const auto failed = aoti_torch_empty_strided(dims, sizes, strides, TorchCode(dtype),
                                               aoti_torch_device_type_cpu(), 0, &handle);
  if (failed != 0) {
    ThrowIfError(Status::OutOfMemory("tensor: torch could not allocate " +
                                     std::to_string(stride * static_cast<int64_t>(SizeOf(dtype))) +
                                     " bytes"));
  }
  return Tensor(handle);
}

inline Tensor Empty(std::initializer_list<int64_t> sizes, DType dtype) {
  return Empty(sizes.begin(), static_cast<int64_t>(sizes.size()), dtype);
}

}  // namespace sparsekern::bind
