// SPDX-License-Identifier: Apache-2.0
// Functions that CUDA kernels and the host's tests share.
#pragma once

#if defined(__CUDACC__)
#define SPARSEKERN_HOST_DEVICE __host__ __device__ __forceinline__
// Device code that takes what lanes exchange as an argument, so that the host can emulate a warp.
#define SPARSEKERN_EMULATED __device__ __forceinline__
#else
#define SPARSEKERN_HOST_DEVICE inline
#define SPARSEKERN_EMULATED inline
#endif

// Of a loop that is to stay one on the device.
#if defined(__CUDA_ARCH__)
#define SPARSEKERN_ROLLED _Pragma("unroll 1")
#else
#define SPARSEKERN_ROLLED
#endif
