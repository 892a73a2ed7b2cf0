// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for 5 to 64 rows of x, 16 at a time, in bfloat16 and float16 (values of that dtype
// or int8), on tensor cores from sm_80 on. Still limited by bytes, and by what expanding costs,
// which 16 rows share. What is not kept is a zero, which an infinity or NaN in x meets as in a
// dense product.
//
// A warp streams slices (cuda_stream.h). A nibble is what a lane holds of one row of mma.m16n8k16's
// operand A, and the same four columns of a row of x what it holds of B: neither goes through
// shared memory again.
#include "base/cuda/dense_mma.h"
#include "ops/bitmap_linear/cuda_stream.h"

namespace sparsekern::cuda {
namespace {

constexpr int kOperands = kMmaRowsAtOnce / 8;  // of eight rows of x

template <typename E>
__device__ __forceinline__ uint32_t Pair(E low, E high) {
  return static_cast<uint32_t>(__builtin_bit_cast(uint16_t, low)) |
         static_cast<uint32_t>(__builtin_bit_cast(uint16_t, high)) << 16;
}

template <typename E, typename V>
class MultiplyMma {
 public:
  static constexpr int kRowsOfX = kMmaRowsAtOnce;

  __device__ __forceinline__ MultiplyMma(const BitmapCudaArgs&, const uint8_t* shared)
      : shared_(shared) {}

  __device__ __forceinline__ void operator()(const Slice& slice) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int step = 0; step < kBitmapCols / 16; ++step) {
      uint32_t w[4];
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const Nibble<V> n = LoadNibble<V>(shared_, slice, MmaHalf(step, lane, lower),
                                          MmaShift(step, lane), BelowMask(MmaShift(step, lane)));
        E v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          v[i] = FromFloat<E>(0.0f);
          if (NibbleKeeps(n.kept, i) != 0) v[i] = Convert(n.v[i]);
        }
        w[lower] = Pair(v[0], v[1]);
        w[lower + 2] = Pair(v[2], v[3]);
      }
#pragma unroll
      for (int j = 0; j < kOperands; ++j) {
        const auto x = *reinterpret_cast<const uint2*>(
            shared_ + slice.x + (j * 8 + lane / 4) * XStride(2) + MmaColumn(step, lane) * 2);
        Multiply<E>(sum_[j], w, x.x, x.y);
      }
    }
  }

  __device__ __forceinline__ void Store(float* sums) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int j = 0; j < kOperands; ++j) PutFragment(sums, kBitmapRows, 0, j * 8, lane, sum_[j]);
  }

 private:
  static __device__ __forceinline__ E Convert(V v) {
    if constexpr (__is_same(E, V)) {
      return v;
    } else {
      return FromFloat<E>(ToFloat(v));
    }
  }

  const uint8_t* shared_;
  float sum_[kOperands][4] = {};
};

template <typename E, typename V>
__global__ void __launch_bounds__(kBitmapMaxWarps * 32, 2) DecodeMmaKernel(const BitmapCudaArgs a) {
  Decode<V, MultiplyMma<E, V>>(a);
}

}  // namespace

cudaError_t LaunchDecodeMma(const BitmapCudaArgs& a, cudaStream_t stream) {
  return WithTensorTypes(a.problem, [&]<typename E, typename V>() {
    return LaunchStream(DecodeMmaKernel<E, V>, a, stream);
  });
}

}  // namespace sparsekern::cuda
