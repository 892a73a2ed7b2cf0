// SPDX-License-Identifier: Apache-2.0
// N:M masks, from sm_80 on. A thread is an element, a group m neighbouring threads: each learns the
// others' keys by exchanges within the warp and counts those that go before its own. Reads and
// writes are coalesced whatever m is. Limited by memory up to m = 8, by exchanges above.
#include <cuda_runtime.h>

#include "ops/nm_mask/cuda_mask.h"
#include "ops/nm_mask/sort_key.h"

namespace sparsekern::cuda {
namespace {

constexpr int kThreads = 256;

template <typename Bits, int M>
__global__ void __launch_bounds__(kThreads) MaskKernel(const NmMaskArgs a) {
  const int64_t threads = a.rows * ((a.cols + M - 1) / M * M);
  const auto* score = static_cast<const Bits*>(a.score);
  const int own = static_cast<int>(threadIdx.x) % M;
  const bool is_f16 = a.dtype == DType::kF16;
  // Whole warps stay in the loop: its bound is the same for all threads of a block.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads; first < threads;
       first += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t thread = first + threadIdx.x;
    NmMaskElement at{0, thread};  // where rows end with a group the matrix is one long row
    if (a.cols % M != 0) at = NmMaskElementAt(thread, a.cols, M);
    const bool there = thread < threads && (a.cols % M == 0 || at.col < a.cols);
    const int64_t i = at.row * a.cols + at.col;
    int32_t key = INT32_MIN;  // beyond a row: behind every element before it
    if (there) {
      const auto bits = static_cast<uint32_t>(score[i]) << (32 - 8 * sizeof(Bits));
      key = NmSortKey(bits, is_f16, a.magnitude);
    }
    int before = 0;
#pragma unroll
    for (int d = 1; d < M; ++d) {
      const int32_t other = __shfl_xor_sync(0xffffffffu, key, d);
      before += NmGoesBefore(other, own ^ d, key, own) ? 1 : 0;
    }
    if (there) a.mask[i] = before < a.n ? 1 : 0;
  }
}

template <typename Bits>
cudaError_t LaunchFor(const NmMaskArgs& a, cudaStream_t stream) {
  const int64_t threads = a.rows * ((a.cols + a.m - 1) / a.m * a.m);
  const int64_t wanted = (threads + kThreads - 1) / kThreads;
  const auto blocks = static_cast<unsigned>(wanted < (1 << 20) ? wanted : (1 << 20));
  switch (a.m) {
    case 2: MaskKernel<Bits, 2><<<blocks, kThreads, 0, stream>>>(a); break;
    case 4: MaskKernel<Bits, 4><<<blocks, kThreads, 0, stream>>>(a); break;
    case 8: MaskKernel<Bits, 8><<<blocks, kThreads, 0, stream>>>(a); break;
    case 16: MaskKernel<Bits, 16><<<blocks, kThreads, 0, stream>>>(a); break;
    case 32: MaskKernel<Bits, 32><<<blocks, kThreads, 0, stream>>>(a); break;
    default: return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace

const char* NmMask(const NmMaskArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      a.dtype == DType::kF32 ? LaunchFor<uint32_t>(a, on) : LaunchFor<uint16_t>(a, on);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace sparsekern::cuda
