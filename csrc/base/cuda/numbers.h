// SPDX-License-Identifier: Apache-2.0
// Conversions and activations of the CUDA kernels, in fp32. Device code only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "sparsekern/activation.h"
#include "sparsekern/dtype.h"

namespace sparsekern::cuda {

__device__ __forceinline__ float ToFloat(float v) { return v; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float ToFloat(__half v) { return __half2float(v); }
__device__ __forceinline__ float ToFloat(int8_t v) { return static_cast<float>(v); }

template <typename T>
__device__ __forceinline__ T FromFloat(float v) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return v;
  } else if constexpr (__is_same(T, __half)) {
    return __float2half_rn(v);
  } else {
    return __float2bfloat16_rn(v);
  }
}

// Element i of an array whose dtype is known at run time only.
__device__ __forceinline__ float LoadAsFloat(const void* data, int64_t i, DType dtype) {
  switch (dtype) {
    case DType::kF32: return static_cast<const float*>(data)[i];
    case DType::kBF16: return ToFloat(static_cast<const __nv_bfloat16*>(data)[i]);
    case DType::kF16: return ToFloat(static_cast<const __half*>(data)[i]);
    case DType::kI8: return ToFloat(static_cast<const int8_t*>(data)[i]);
  }
  return 0.0f;
}

__device__ __forceinline__ void StoreFloat(void* data, int64_t i, DType dtype, float v) {
  switch (dtype) {
    case DType::kF32: static_cast<float*>(data)[i] = v; break;
    case DType::kBF16: static_cast<__nv_bfloat16*>(data)[i] = FromFloat<__nv_bfloat16>(v); break;
    case DType::kF16: static_cast<__half*>(data)[i] = FromFloat<__half>(v); break;
    case DType::kI8: break;  // no operator has such a result
  }
}

__device__ __forceinline__ float QuietNaN() { return __int_as_float(0x7fc00000); }

// NaN passes, as on the CPU.
__device__ __forceinline__ float Activate(float x, Activation activation) {
  switch (activation) {
    case Activation::kNone: return x;
    case Activation::kRelu: return x > 0.0f || x != x ? x : 0.0f;
    case Activation::kRelu6: return x != x ? x : fminf(fmaxf(x, 0.0f), 6.0f);
    case Activation::kGelu: return x * normcdff(x);
    case Activation::kGeluTanh:
      return x * (1.0f / (1.0f + expf(-1.59576912f * (x + 0.044715f * x * x * x))));
    case Activation::kSilu: return x / (1.0f + expf(-x));
    case Activation::kHardswish: {
      const float gate = x != x ? x : fminf(fmaxf(x + 3.0f, 0.0f), 6.0f);
      return x * gate * (1.0f / 6.0f);
    }
  }
  return x;
}

}  // namespace sparsekern::cuda
