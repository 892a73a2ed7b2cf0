// SPDX-License-Identifier: Apache-2.0
// Ways into shared memory and out of it, from sm_80 on. Device code only.
#pragma once

#include <cuda_runtime.h>

#include "base/cuda/problem.h"
#include "base/cuda/tiles.h"

namespace sparsekern::cuda {

// 16 bytes from global to shared memory without registers, of which only the first `bytes` are read
// and the others are zeros.
__device__ __forceinline__ void CopyAsync(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
}
// All of them, or zeros where `there` is false.
__device__ __forceinline__ void CopyAsync(uint32_t to, const void* from, bool there) {
  CopyAsync(to, from, there ? 16 : 0);
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int Left>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Left) : "memory");
}

// Four 8x8 matrices of 16-bit elements; every lane gives the address of one row of one.
__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Rows of x of a tile of columns, into shared memory in the order of RowOffset.
template <int Rows, int Threads>
__device__ __forceinline__ void CopyRowsOfX(const LinearCall& a, int64_t first_row,
                                            int64_t first_col, uint32_t to) {
  static_assert(Rows * 8 % Threads == 0);
#pragma unroll
  for (int i = 0; i < Rows * 8 / Threads; ++i) {
    const int c = i * Threads + static_cast<int>(threadIdx.x);
    const int row = c / 8, chunk = c % 8;
    const int64_t m = first_row + row, k = first_col + chunk * 8;
    const bool there = m < a.problem.x_rows && k < a.x_cols;
    const auto* x = static_cast<const uint16_t*>(a.x) + (there ? m * a.x_stride + k : 0);
    CopyAsync(to + RowOffset(row, chunk), x, there);
  }
}

}  // namespace sparsekern::cuda
