// SPDX-License-Identifier: Apache-2.0
// Order around Hopper's asynchronous tensor-core products, sm_90a. Device code only.
#pragma once

#include <cstdint>

namespace sparsekern::cuda {

// Before products: registers that they read or add to have been written.
__device__ __forceinline__ void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until no more than `Left` groups of the warpgroup's products are under way.
template <int Left>
__device__ __forceinline__ void WaitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(Left) : "memory");
}
// What this thread wrote to shared memory, its cp.async included, is seen by products that begin
// after a barrier.
__device__ __forceinline__ void ShowProducts() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Keeps registers that a product under way uses in their place until here.
template <int N>
__device__ __forceinline__ void KeepUntilHere(uint32_t (&r)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(r[i])::"memory");
}
template <int N>
__device__ __forceinline__ void KeepUntilHere(float (&r)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(r[i])::"memory");
}

}  // namespace sparsekern::cuda
