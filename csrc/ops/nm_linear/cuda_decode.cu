// SPDX-License-Identifier: Apache-2.0
// nm_linear for up to 16 rows of x, any pattern and dtypes, from sm_80 on. Memory-bound: its limit
// is the packed bytes over the memory bandwidth.
//
// A warp owns a panel of 16 rows of W and a share of the columns. A thread loads 16 bytes of
// values, that is 16, 8 or 4 rows of a step, and the words of those rows, which 4 to 16 steps share
// and a warp's threads have in common. x lies in shared memory as fp32, rows of x side by side; the
// 16 steps that a warp looks up at 2:4 in 16 bits are of 32 consecutive columns, so no two threads
// meet in a bank for different words. Sums stay in registers until the end and are then added
// across the lanes. Shares of the columns go to a workspace that a second kernel adds up in order
// and finishes: results are deterministic, and the epilogue is compiled once.
#include "ops/nm_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

constexpr int kThreads = kDecodeWarps * 32;

template <int MR>
struct alignas(MR >= 4 ? 16 : MR * 4) RowsOfX {
  float v[MR];
};

template <typename V, int MR>
__global__ void __launch_bounds__(kThreads) DecodeKernel(const NmCudaArgs a) {
  constexpr int kBytes = static_cast<int>(sizeof(V));
  constexpr int kRows = DecodeRows(kBytes);
  constexpr int kRun = DecodeRun(kBytes);
  constexpr int kStride = DecodeStride(kBytes);
  constexpr int kChunk = kDecodeFloats / MR;
  // Runs whose loads are under way together.
  constexpr int kAhead = MR > 2 ? 1 : kBytes == 2 ? 4 : 2;
  __shared__ RowsOfX<MR> x_tile[kChunk];

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t panel =
      static_cast<int64_t>(blockIdx.x) * kDecodeWarps + static_cast<int>(threadIdx.x) / 32;
  const int64_t first_x = static_cast<int64_t>(blockIdx.y) * MR;
  const int per_window = a.plan.steps_per_window;
  const int wide = a.plan.window;
  const int bits = NmFieldBits(wide);
  const int fields = 32 / bits;  // a power of two
  const NmLayout s = NmLayoutOf(a.problem.rows, a.problem.cols, wide, per_window,
                                a.problem.structure_bytes, a.problem.value_count);
  const uint32_t reciprocal = NmReciprocal(per_window);
  const int row = DecodeFirstRow(lane, kBytes);
  const NmColumns part = DecodePart(a.problem.cols, static_cast<int>(blockIdx.z), a.plan.parts);

  float sum[kRows][MR] = {};
  for (int64_t first = part.begin; first < part.end; first += kChunk) {
    const int width = static_cast<int>(part.end - first < kChunk ? part.end - first : kChunk);
    __syncthreads();  // the tile before this one has been read
    for (int m = 0; m < MR; ++m) {
      const int64_t x_row = first_x + m;
      const int64_t there =
          x_row < a.problem.x_rows ? a.problem.cols - first : 0;  // a filled slot adds nothing
      for (int k = static_cast<int>(threadIdx.x); k < width; k += kThreads) {
        x_tile[k].v[m] =
            k < there ? LoadAsFloat(a.x, x_row * a.x_stride + first + k, a.problem.x_dtype) : 0.0f;
      }
    }
    __syncthreads();
    if (panel >= s.panels) continue;

    const int64_t begin = first / wide * per_window;
    const int64_t end = (first + width) / wide * per_window;
    const int count = static_cast<int>((end < s.steps ? end : s.steps) - begin);
    const auto* values = reinterpret_cast<const uint4*>(
        static_cast<const V*>(a.values) + (panel * s.steps + begin) * kNmPanelRows + row);
    const auto* words = reinterpret_cast<const uint4*>(
        a.structure + kNmHeaderBytes +
        ((panel * s.words + begin / fields) * kNmPanelRows + row) * 4);
    for (int j0 = DecodeFirstStep(lane, kBytes); j0 < count; j0 += kStride * kAhead) {
      uint4 raw[kAhead][kRun];
      uint4 word[kAhead][kRows / 4];
#pragma unroll
      for (int h = 0; h < kAhead; ++h) {
        const int j = j0 + h * kStride;
        if (j < count) {
#pragma unroll
          for (int i = 0; i < kRows / 4; ++i) word[h][i] = __ldg(words + j / fields * 4 + i);
        }
#pragma unroll
        for (int u = 0; u < kRun; ++u) {
          if (j + u < count) raw[h][u] = __ldg(values + (j + u) * kBytes);
        }
      }
#pragma unroll
      for (int h = 0; h < kAhead; ++h) {
        const int j = j0 + h * kStride;
        int window = NmWindowOf(j, reciprocal);
        int within = j - window * per_window;
#pragma unroll
        for (int u = 0; u < kRun; ++u) {
          if (j + u >= count) break;
          const RowsOfX<MR>* x = x_tile + window * wide;
          const int field = (j + u) & (fields - 1);
          const auto* w = reinterpret_cast<const V*>(&raw[h][u]);
          const auto* index = reinterpret_cast<const uint32_t*>(word[h]);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const float weight = ToFloat(w[r]);
            const RowsOfX<MR> at = x[NmColumn(index[r], field, wide)];
#pragma unroll
            for (int m = 0; m < MR; ++m) sum[r][m] = fmaf(weight, at.v[m], sum[r][m]);
          }
          const bool next = ++within == per_window;
          window += next ? 1 : 0;
          within = next ? 0 : within;
        }
      }
    }
  }
  if (panel >= s.panels) return;

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int m = 0; m < MR; ++m) {
#pragma unroll
      for (int step = 16; step >= DecodeThreadsOfStep(kBytes); step /= 2) {
        sum[r][m] += __shfl_xor_sync(0xffffffffu, sum[r][m], step);
      }
    }
  }
  if (lane >= DecodeThreadsOfStep(kBytes)) return;
#pragma unroll
  for (int m = 0; m < MR; ++m) {
    if (first_x + m >= a.problem.x_rows) break;
    float* out = a.partial + (blockIdx.z * a.problem.x_rows + first_x + m) * a.problem.rows +
                 panel * kNmPanelRows + row;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (panel * kNmPanelRows + row + r < a.problem.rows) out[r] = sum[r][m];
    }
  }
}

template <typename V>
void LaunchForRows(const NmCudaArgs& a, dim3 grid, cudaStream_t stream) {
  switch (a.plan.rows_of_x) {
    case 1: DecodeKernel<V, 1><<<grid, kThreads, 0, stream>>>(a); break;
    case 2: DecodeKernel<V, 2><<<grid, kThreads, 0, stream>>>(a); break;
    case 4: DecodeKernel<V, 4><<<grid, kThreads, 0, stream>>>(a); break;
    case 8: DecodeKernel<V, 8><<<grid, kThreads, 0, stream>>>(a); break;
  }
}

}  // namespace

cudaError_t LaunchDecode(const NmCudaArgs& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(DivideUp(a.problem.rows, a.plan.features)),
                  static_cast<unsigned>(DivideUp(a.problem.x_rows, a.plan.rows_of_x)),
                  static_cast<unsigned>(a.plan.parts));
  switch (a.problem.value_dtype) {
    case DType::kF32: LaunchForRows<float>(a, grid, stream); break;
    case DType::kBF16: LaunchForRows<__nv_bfloat16>(a, grid, stream); break;
    case DType::kF16: LaunchForRows<__half>(a, grid, stream); break;
    case DType::kI8: LaunchForRows<int8_t>(a, grid, stream); break;
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? LaunchAddParts(a, stream) : error;
}

}  // namespace sparsekern::cuda
