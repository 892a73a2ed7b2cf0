// SPDX-License-Identifier: Apache-2.0
// csr linear for NVIDIA GPUs from sm_80 on: the simplest kernel that proves the path. Not yet
// tuned.
//
// A block of threads owns one panel of outputs, eight rows of x and a share of the column blocks.
// Per tile, half-warps take slices: a thread is a lane, that is one group of R outputs, and walks
// the slice's steps; values and indices are read coalesced (16 lanes side by side). A group occurs
// once in a tile, so sums go to shared memory without atomics, and the order of additions is fixed:
// results are deterministic. Shares of the columns go to a workspace that a second kernel adds up
// in order, with scale, bias and activation.
//
// Memory-bound for few rows of x; its limit is the packed bytes over the memory bandwidth.
#include <cuda_runtime.h>

#include "base/cuda/numbers.h"
#include "ops/csr_spmm/cuda_index.h"
#include "ops/csr_spmm/cuda_sm80.h"

namespace sparsekern::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHalfWarps = kThreads / 16;
constexpr int kRowsOfX = 8;

// Dynamic shared memory: sums[panel_groups * R][kRowsOfX].
template <typename X, typename V, int R>
__device__ void Product(const CsrLinearArgs& a, const CsrLayout& s, float* sums) {
  const int64_t m0 = static_cast<int64_t>(blockIdx.y) * kRowsOfX;
  const int present = static_cast<int>(a.x_rows - m0 < kRowsOfX ? a.x_rows - m0 : kRowsOfX);
  const int panel_rows = s.panel_groups * R;
  for (int i = threadIdx.x; i < panel_rows * kRowsOfX; i += kThreads) sums[i] = 0.0f;
  __syncthreads();

  const X* x = static_cast<const X*>(a.x) + m0 * a.cols;
  const V* values = static_cast<const V*>(a.values);
  const uint8_t* index = a.structure + s.index_at;
  const int lane = threadIdx.x % 16;
  const int slices = s.panel_groups / 16;
  const SliceRange blocks = PartOfBlocks(s.blocks, blockIdx.z, a.parts);
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t t = static_cast<int64_t>(blockIdx.x) * s.blocks + block;
    const int64_t k0 = block * 128;
    for (int slice = threadIdx.x / 16; slice < slices; slice += kHalfWarps) {
      const SliceRange steps = SliceSteps(s, a.structure, t, slice);
      const int64_t position = t * s.panel_groups + slice * 16 + lane;
      const int count = a.structure[s.count_at + position];
      float sum[R][kRowsOfX] = {};
      for (int64_t q = steps.begin; q < steps.end && q - steps.begin < count; ++q) {
        const int64_t k = k0 + index[q * 16 + lane];
        if (k >= a.cols) break;  // only in a structure that was never validated
        for (int i = 0; i < R; ++i) {
          const float w = ToFloat(values[(q * R + i) * 16 + lane]);
#pragma unroll
          for (int m = 0; m < kRowsOfX; ++m) {
            if (m < present) sum[i][m] += w * ToFloat(x[m * a.cols + k]);
          }
        }
      }
      const int group = a.structure[s.order_at + position];
      if (count != 0 && group < s.panel_groups) {
        for (int i = 0; i < R; ++i) {
          for (int m = 0; m < kRowsOfX; ++m) sums[(group * R + i) * kRowsOfX + m] += sum[i][m];
        }
      }
    }
    __syncthreads();  // the next tile puts the same groups on other lanes
  }

  for (int i = threadIdx.x; i < panel_rows * present; i += kThreads) {
    const int r = i % panel_rows;
    const int m = i / panel_rows;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * panel_rows + r;
    if (row < a.rows) {
      a.partial[(static_cast<int64_t>(blockIdx.z) * a.x_rows + m0 + m) * a.rows + row] =
          sums[r * kRowsOfX + m];
    }
  }
}

template <typename X, typename V>
__global__ void __launch_bounds__(kThreads) ProductKernel(CsrLinearArgs a) {
  extern __shared__ float sums[];
  const CsrLayout s = ReadLayout(a.structure, a.structure_bytes, a.value_count, a.rows, a.cols);
  if (!s.consistent || blockIdx.x >= s.panels) return;
  switch (s.block_rows) {
    case 1: return Product<X, V, 1>(a, s, sums);
    case 2: return Product<X, V, 2>(a, s, sums);
    case 4: return Product<X, V, 4>(a, s, sums);
  }
}

template <typename X>
__global__ void FinishKernel(CsrLinearArgs a) {
  const CsrLayout s = ReadLayout(a.structure, a.structure_bytes, a.value_count, a.rows, a.cols);
  const int64_t n = a.x_rows * a.rows;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    float sum = 0.0f;
    for (int part = 0; part < a.parts; ++part) sum += a.partial[part * n + i];
    const int64_t row = i % a.rows;
    if (a.scale != nullptr) sum *= a.scale[row];
    if (a.bias != nullptr) sum += a.bias[row];
    sum = s.consistent ? Activate(sum, a.activation) : QuietNaN();
    static_cast<X*>(a.y)[i] = FromFloat<X>(sum);
  }
}

template <typename X, typename V>
cudaError_t Launch(const CsrLinearArgs& a, cudaStream_t stream) {
  // The largest panel: 256 groups of 4 rows. Above 48 KB the device must be asked first.
  constexpr int kSharedBytes = 256 * 4 * kRowsOfX * sizeof(float);
  static_assert(kSharedBytes <= 48 * 1024, "needs cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>(a.panels),
                  static_cast<unsigned>((a.x_rows + kRowsOfX - 1) / kRowsOfX),
                  static_cast<unsigned>(a.parts));
  ProductKernel<X, V><<<grid, kThreads, kSharedBytes, stream>>>(a);
  const int64_t blocks = (a.x_rows * a.rows + kThreads - 1) / kThreads;
  FinishKernel<X><<<static_cast<unsigned>(blocks < 4096 ? blocks : 4096), kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

template <typename X>
cudaError_t LaunchForValues(const CsrLinearArgs& a, cudaStream_t stream) {
  switch (a.value_dtype) {
    case DType::kF32: return Launch<X, float>(a, stream);
    case DType::kBF16: return Launch<X, __nv_bfloat16>(a, stream);
    case DType::kF16: return Launch<X, __half>(a, stream);
    case DType::kI8: return Launch<X, int8_t>(a, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int64_t MaxPanels(int64_t rows) { return (rows + 15) / 16; }

int ChooseParts(int64_t rows, int64_t cols, int64_t x_rows, int multiprocessors) {
  const int64_t blocks = (rows + 255) / 256 * ((x_rows + kRowsOfX - 1) / kRowsOfX);
  const int64_t wanted = (2 * multiprocessors + blocks - 1) / blocks;  // two blocks of threads each
  const int64_t column_blocks = (cols + 127) / 128;
  const int64_t most = wanted < column_blocks ? wanted : column_blocks;
  return static_cast<int>(most < 1 ? 1 : (most > 64 ? 64 : most));
}

const char* CsrLinear(const CsrLinearArgs& a, void* stream) {
  cudaError_t error = cudaErrorInvalidValue;
  switch (a.x_dtype) {
    case DType::kF32: error = LaunchForValues<float>(a, static_cast<cudaStream_t>(stream)); break;
    case DType::kBF16:
      error = LaunchForValues<__nv_bfloat16>(a, static_cast<cudaStream_t>(stream));
      break;
    case DType::kF16: error = LaunchForValues<__half>(a, static_cast<cudaStream_t>(stream)); break;
    case DType::kI8: break;
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace sparsekern::cuda
