// SPDX-License-Identifier: Apache-2.0
// Functions that CUDA kernels and the host's tests share.
#pragma once

#if defined(__CUDACC__)
#define SPARSEKERN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SPARSEKERN_HOST_DEVICE inline
#endif
