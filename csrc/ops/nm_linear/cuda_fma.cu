// SPDX-License-Identifier: Apache-2.0
// nm_linear for many rows of x, any pattern and dtypes, from sm_80 on: fp32 multiply-adds
// (base/cuda/fma.h).
#include "base/cuda/fma.h"
#include "ops/nm_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

constexpr int kCols = 32;  // of a tile: a whole window of any pattern

// Four threads expand a row of W.
class Expand {
 public:
  __device__ __forceinline__ Expand(const NmCudaArgs& a, const NmLayout& s) : a_(a), s_(s) {}

  __device__ __forceinline__ void operator()(int64_t feature, int64_t k, float* w) const {
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t panel = feature / kNmPanelRows + thread / 64;
    if (panel >= s_.panels) return;
    const int row = thread % kNmPanelRows;
    const int tile_steps = kCols / s_.window * s_.steps_per_window;
    const int fields = 32 / s_.field_bits;
    const uint32_t reciprocal = NmReciprocal(s_.steps_per_window);
    const auto* words = reinterpret_cast<const uint32_t*>(a_.structure + kNmHeaderBytes);
    for (int j = thread / kNmPanelRows % 4; j < tile_steps; j += 4) {
      const int64_t step = k * tile_steps + j;
      if (step >= s_.steps) break;
      const uint32_t word = __ldg(words + (panel * s_.words + step / fields) * kNmPanelRows + row);
      const int column = NmWindowOf(j, reciprocal) * s_.window +
                         NmColumn(word, static_cast<int>(step % fields), s_.window);
      w[column * kFmaStride + thread / 64 * kNmPanelRows + row] = LoadAsFloat(
          a_.values, (panel * s_.steps + step) * kNmPanelRows + row, a_.problem.value_dtype);
    }
  }

 private:
  const NmCudaArgs& a_;
  const NmLayout& s_;
};

__global__ void __launch_bounds__(kFmaThreads) FmaKernel(const NmCudaArgs a) {
  const NmLayout s = LayoutOnDevice(a);
  Expand expand(a, s);
  MultiplyFma<kCols>(a, s.consistent, expand);
}

}  // namespace

cudaError_t LaunchFma(const NmCudaArgs& a, cudaStream_t stream) {
  FmaKernel<<<static_cast<unsigned>(CountTiles(a.problem, kFmaTile)), kFmaThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace sparsekern::cuda
