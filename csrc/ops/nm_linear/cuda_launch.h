// SPDX-License-Identifier: Apache-2.0
// What the files with the CUDA kernels offer to cuda_nm.cu, and what they share. Device code.
#pragma once

#include <cuda_runtime.h>

#include "base/cuda/numbers.h"
#include "ops/nm_linear/cuda_nm.h"

namespace sparsekern::cuda {

cudaError_t LaunchDecode(const NmCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchSparseMma(const NmCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchDenseMma(const NmCudaArgs& a, cudaStream_t stream);
cudaError_t LaunchFma(const NmCudaArgs& a, cudaStream_t stream);

// The layout by the structure's own header.
__device__ __forceinline__ NmLayout LayoutOnDevice(const NmCudaArgs& a) {
  return ReadNmLayout(static_cast<const uint8_t*>(__builtin_assume_aligned(a.structure, 16)),
                      a.problem.structure_bytes, a.problem.value_count, a.problem.rows,
                      a.problem.cols);
}

// A sum's way to the output.
__device__ __forceinline__ float Finish(const NmCudaArgs& a, bool consistent, int64_t feature,
                                        float sum) {
  if (!consistent) return QuietNaN();
  if (a.scale != nullptr) sum *= a.scale[feature];
  if (a.bias != nullptr) sum += a.bias[feature];
  return Activate(sum, a.activation);
}

// 16 bytes from global to shared memory without registers; zeros where `there` is false.
__device__ __forceinline__ void CopyAsync(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
               : "memory");
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
__device__ __forceinline__ void CopyRowsOfX(const NmCudaArgs& a, int64_t first_row,
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

// A tile of sums in shared memory, [Tokens][stride], to y: scale, bias, activation, rounding.
template <typename E, int Features, int Tokens, int Threads>
__device__ __forceinline__ void StoreTile(const NmCudaArgs& a, NmTile at, const float* sums,
                                          int stride) {
  const bool consistent = LayoutOnDevice(a).consistent;
  const bool pairs = a.problem.rows % 2 == 0;  // then a pair is aligned in every row of y
  for (int c = static_cast<int>(threadIdx.x); c < Tokens * Features / 2; c += Threads) {
    const int token = c / (Features / 2), feature = c % (Features / 2) * 2;
    const int64_t m = at.token * Tokens + token, n = at.feature * Features + feature;
    if (m >= a.problem.x_rows || n >= a.problem.rows) continue;
    const float* sum = sums + token * stride + feature;
    E* y = static_cast<E*>(a.y) + m * a.problem.rows + n;
    struct alignas(2 * sizeof(E)) Pair {
      E first, second;
    };
    const E first = FromFloat<E>(Finish(a, consistent, n, sum[0]));
    if (n + 1 == a.problem.rows) {
      *y = first;
      continue;
    }
    const E second = FromFloat<E>(Finish(a, consistent, n + 1, sum[1]));
    if (pairs) {
      *reinterpret_cast<Pair*>(y) = Pair{first, second};
    } else {
      y[0] = first;
      y[1] = second;
    }
  }
}

}  // namespace sparsekern::cuda
