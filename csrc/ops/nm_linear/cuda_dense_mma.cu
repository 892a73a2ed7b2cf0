// SPDX-License-Identifier: Apache-2.0
// nm_linear for many rows of x, any pattern, in bfloat16 and float16 (values of that dtype or
// int8), on dense tensor cores from sm_80 on (base/cuda/dense_mma.h).
#include "base/cuda/dense_mma.h"
#include "ops/nm_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

template <typename E, typename V>
class Expand {
 public:
  __device__ __forceinline__ Expand(const NmCudaArgs& a, const NmLayout& s) : a_(a), s_(s) {}

  __device__ __forceinline__ void operator()(int64_t panel, int64_t k, uint8_t* mine) const {
    // The tile, not the warp's place in it: one address less in a register, which this kernel, with
    // 128 of them, would spill.
    const int warp = static_cast<int>(threadIdx.x) / 32;
    uint8_t* w = mine - warp * kDensePanelBytes;
    const int thread = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kDensePanelBytes / 16 / 32; ++i) {
      *reinterpret_cast<uint4*>(w + warp * kDensePanelBytes + (i * 32 + thread) * 16) =
          make_uint4(0, 0, 0, 0);
    }
    __syncwarp();
    if (panel >= s_.panels) return;
    const int lane = thread % kNmPanelRows;
    const int tile_steps = kTileCols / s_.window * s_.steps_per_window;
    const int64_t begin = k * tile_steps;
    const int count =
        static_cast<int>(s_.steps - begin < tile_steps ? s_.steps - begin : tile_steps);
    const int fields = 32 / s_.field_bits;  // a power of two
    const int offset = static_cast<int>(begin & (fields - 1));
    const uint32_t reciprocal = NmReciprocal(s_.steps_per_window);
    const V* values =
        static_cast<const V*>(a_.values) + (panel * s_.steps + begin) * kNmPanelRows + lane;
    const auto* words = reinterpret_cast<const uint32_t*>(a_.structure + kNmHeaderBytes) +
                        (panel * s_.words + begin / fields) * kNmPanelRows + lane;
#pragma unroll 2
    for (int j = thread / kNmPanelRows; j < count; j += 2) {
      const uint32_t word = __ldg(words + (offset + j) / fields * kNmPanelRows);
      const int column = NmWindowOf(j, reciprocal) * s_.window +
                         NmColumn(word, (offset + j) & (fields - 1), s_.window);
      E* to = reinterpret_cast<E*>(w + RowOffset(warp * kNmPanelRows + lane, column / 8));
      to[column % 8] = FromFloat<E>(ToFloat(values[j * kNmPanelRows]));
    }
  }

 private:
  const NmCudaArgs& a_;
  const NmLayout& s_;
};

template <typename E, typename V>
__global__ void __launch_bounds__(kDenseThreads, 2) DenseMmaKernel(const NmCudaArgs a) {
  const NmLayout s = LayoutOnDevice(a);
  Expand<E, V> expand(a, s);
  MultiplyDense<E>(a, s.consistent, expand);
}

}  // namespace

cudaError_t LaunchDenseMma(const NmCudaArgs& a, cudaStream_t stream) {
  return WithTensorTypes(a.problem, [&]<typename E, typename V>() {
    return LaunchDense(DenseMmaKernel<E, V>, a, stream);
  });
}

}  // namespace sparsekern::cuda
